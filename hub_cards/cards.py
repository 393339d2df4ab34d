"""Model cards: templates filled with what a run's own files say. What they do not say is not claimed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, RepoCard

from pacl.evaluation.report import NO_PERCENT, markdown

from .facts import Result, RunFacts, loss_ends, read_facts, results_of
from .sources import hub_ids, licence_notes, paper_figures, release_licence

# What tells a repo of ours apart, and its kind.
TAGS = {
    "backbone": "pacl-backbone",
    "dual_encoder": "pacl-dual-encoder",
    "classifier": "pacl-classifier",
    "dataset": "pacl-dataset",
}
THINGS = {"backbone": "backbone", "dual_encoder": "dual encoder", "classifier": "classifier"}
LEADS = {
    "backbone": "A vision backbone (`{architecture}`) that sees how a picture feels.",
    "dual_encoder": "A dual encoder (`{architecture}`) that compares pictures with emotion words, zero-shot.",
    "classifier": "A picture classifier (`{architecture}`): a linear head on a backbone that sees how pictures feel.",
}
PIPELINES = {
    "backbone": "image-feature-extraction",
    "dual_encoder": "zero-shot-image-classification",
    "classifier": "image-classification",
}
PROTOCOLS = {
    "probe": "linear probe",
    "linear": "linear evaluation",
    "finetune": "fine-tuning",
    "zero_shot": "zero-shot",
}
PARTITIONS = ("strong", "partial_emotional", "partial_factual", "weak")


def write_backbone_card(
    folder: str | Path,
    run_folder: str | Path,
    *,
    repo_id: str,
    evaluation: str | Path | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """
    Write the model card of an enhanced backbone.

    Args:
        folder (`str` or `Path`):
            The exported backbone; the card becomes its `README.md`.
        run_folder (`str` or `Path`):
            The run that it comes from, whose `recipe.yaml` and `report.json` are read.
        repo_id (`str`):
            The repo that the card's code loads.
        evaluation (`str` or `Path`, *optional*):
            The output folder of `pacl evaluate` on it; by default `evaluation/` in the run's folder.
        notes (`Sequence[str]`, *optional*):
            What the export has to say, see [`Export`].

    Returns:
        `Path`: of the card.

    Raises:
        `ValueError`: a file of the run cannot be read.
    """
    facts = read_facts(run_folder, evaluation)
    config = _config(folder)
    timm = "architecture" in config
    usage = {"timm": timm, "pooled": _pooled(facts, notes)}
    library = "timm" if timm else "transformers"
    return _write_model_card("backbone", Path(folder), facts, repo_id, usage, library, notes)


def write_dual_encoder_card(
    folder: str | Path,
    run_folder: str | Path,
    *,
    repo_id: str,
    evaluation: str | Path | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the model card of a dual encoder; arguments as in [`write_backbone_card`]."""
    return dual_encoder_card(folder, read_facts(run_folder, evaluation), repo_id, notes)


def dual_encoder_card(
    folder: str | Path, facts: RunFacts, repo_id: str, notes: Sequence[str] = (), **metadata: Any
) -> Path:
    """Write the model card of a dual encoder from facts that are known already; see [`write_dual_encoder_card`]."""
    config = _config(folder)
    usage = {"plain": config.get("model_type") == "vision-text-dual-encoder", "remote_code": "auto_map" in config}
    return _write_model_card("dual_encoder", Path(folder), facts, repo_id, usage, "transformers", notes, metadata)


def write_classifier_card(
    folder: str | Path,
    run_folder: str | Path,
    *,
    repo_id: str,
    evaluation: str | Path | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the model card of a classifier made from a linear probe; arguments as in [`write_backbone_card`]."""
    config = _config(folder)
    labels = config.get("label_names") or list(config.get("id2label", {}).values())
    facts = read_facts(run_folder, evaluation)
    return _write_model_card("classifier", Path(folder), facts, repo_id, {"labels": labels}, "transformers", notes)


def _write_model_card(
    what: str,
    folder: Path,
    facts: RunFacts,
    repo_id: str,
    usage: dict[str, Any],
    library: str,
    notes: Sequence[str],
    metadata: dict[str, Any] | None = None,
) -> Path:
    results = results_of(facts, what) if what != "classifier" else []
    base_model, posts = hub_ids(facts)
    architecture = _architecture(folder)
    data = ModelCardData(
        base_model=base_model,
        datasets=posts,
        eval_results=[_eval_result(result) for result in results] or None,
        library_name=library,
        license=release_licence(facts),
        model_name=repo_id,
        pipeline_tag=PIPELINES[what],
        tags=["pacl", TAGS[what], "emotion", "arxiv:2511.17103"],
    )
    if facts.emissions is not None:
        data["co2_eq_emissions"] = _emissions(facts.emissions)
    if not results:
        data.model_name = None
    for key, value in (metadata or {}).items():
        data[key] = value if key != "tags" else [*(data.tags or []), *value]
    card = ModelCard.from_template(
        data,
        template_str=template_text("head", what, "training", "results", "limits", "citation"),
        title=repo_id.split("/")[-1],
        lead=LEADS[what].format(architecture=architecture),
        thing=THINGS[what],
        repo_id=repo_id,
        architecture=architecture,
        notes=list(notes),
        built_in=facts.built_in,
        results="\n".join(_result_rows(results, facts)) if results else "",
        licences="\n".join(f"- {note}" for note in licence_notes(facts)),
        carbon=f"{facts.emissions:.3g} kg" if facts.emissions is not None else "",
        **partition_text(facts),
        **_training_text(facts),
        **usage,
    )
    return save_card(card, folder)


def template_text(*names: str) -> str:
    """The templates of these names, one after the other."""
    folder = resources.files(__package__) / "templates"
    return "\n".join((folder / f"{name}.md").read_text(encoding="utf-8") for name in names)


def save_card(card: RepoCard, folder: Path) -> Path:
    """Write a card as a folder's `README.md`."""
    # A part of a template that is left out leaves its blank lines behind.
    card.content = re.sub(r"\n{3,}", "\n\n", card.content).rstrip() + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    card.save(folder / "README.md")
    return folder / "README.md"


def _config(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _architecture(folder: Path) -> str:
    config = _config(folder)
    return config.get("architecture") or (config.get("architectures") or ["model"])[0]


def _pooled(facts: RunFacts, notes: Sequence[str]) -> str:
    """The expression for a picture's features, as the export has found it."""
    for note in notes:
        if found := re.match(r"Features are `model\(pixel_values\)(\.[^`]+)`", note):
            return f"model(**inputs){found[1]}"
    by_recipe = {"first": ".last_hidden_state[:, 0]", "mean": ".last_hidden_state.mean(dim=1)"}
    return "model(**inputs)" + by_recipe.get(facts.recipe.get("vision_pooling", ""), ".pooler_output.flatten(1)")


# Figures -------------------------------------------------------------------------------------------------------------


def _eval_result(result: Result) -> EvalResult:
    seeds = f", mean of {result.seeds} seeds" if result.seeds > 1 else ""
    part = result.metric.rpartition("/")[0]
    return EvalResult(
        task_type=PIPELINES["dual_encoder" if result.protocol == "zero_shot" else "classifier"],
        task_name=PROTOCOLS[result.protocol],
        dataset_type=re.sub(r"\W+", "-", result.data.lower()).strip("-"),
        dataset_name=result.title,
        dataset_split=result.split,
        metric_type={"weighted_f1": "f1"}.get(result.statistic, result.statistic),
        metric_name=f"{result.statistic}{f' ({part})' if part else ''}, {PROTOCOLS[result.protocol]}{seeds}",
        metric_value=round(result.mean, 6),
    )


def _result_rows(results: Sequence[Result], facts: RunFacts) -> list[str]:
    header = (
        "data",
        "protocol",
        "metric",
        "before",
        "this model",
        "difference, points (95 %)",
        "paper, before → PACL",
    )
    rows = []
    for result in results:
        gain = result.difference
        spread = f" ± {_shown(result, result.std)}" if result.seeds > 1 else ""
        rows.append(
            (
                f"{result.title}, {result.split}",
                PROTOCOLS[result.protocol],
                result.metric.replace("/", ": "),
                _shown(result, result.before) if result.before is not None else "",
                _shown(result, result.mean) + spread,
                f"{_shown(result, gain['mean'], '+')} ({_shown(result, gain['low'], '+')} to "
                f"{_shown(result, gain['high'], '+')})"
                if gain
                else "",
                paper_figures(result, facts) or "none",
            )
        )
    return markdown(header, rows)


def _shown(result: Result, value: float, sign: str = "") -> str:
    if result.statistic in NO_PERCENT:
        return f"{value:{sign}.4f}"
    return f"{100 * value:{sign}.2f}" + ("" if sign else " %")


def partition_text(facts: RunFacts, long: bool = False) -> dict[str, Any]:
    """What the report says of posts, thresholds, shares and rejections; empty where it says nothing."""
    partition = facts.report.get("partition")
    if not partition:
        unknown = "The run's report is not there: nothing is known of rejected posts." if long else ""
        return {"posts": "", "thresholds": "", "shares": "", "rejected": unknown}
    return {
        "posts": f"{partition['posts']:,}",
        "thresholds": ", ".join(
            f"{side} score {value:.3f}" for side, value in partition.get("thresholds", {}).items()
        ),
        "shares": "\n".join(_share_rows(partition)),
        "rejected": _rejected(partition.get("rejected", {}), long),
    }


def _share_rows(partition: dict[str, Any]) -> list[str]:
    shares, paper = partition["shares"], partition.get("paper_shares", {})
    rows = [(name.replace("_", " "), f"{shares[name]:.1%}", "") for name in PARTITIONS]
    both = shares["partial_emotional"] + shares["partial_factual"]
    rows[1:3] = [("partial, both kinds", f"{both:.1%}", ""), *rows[1:3]]
    known = {"strong": "strong", "partial, both kinds": "partial", "weak": "weak"}
    return markdown(
        ("partition", "this run", "paper"),
        [(name, share, f"{paper[known[name]]:.0%}" if known.get(name) in paper else "") for name, share, _ in rows],
    )


def _rejected(rejected: dict[str, int], long: bool) -> str:
    listed = ", ".join(f"{count:,} × {reason}" for reason, count in rejected.items())
    if not long:
        return f"without {sum(rejected.values()):,} that were rejected: {listed}" if rejected else ""
    return f"{sum(rejected.values()):,} posts were left out: {listed}." if rejected else "No post was left out."


def _training_text(facts: RunFacts) -> dict[str, Any]:
    training, environment = facts.report.get("training", {}), facts.report.get("environment", {})
    ends = loss_ends(training.get("log", []))
    rows = [
        (name.removeprefix("loss_").replace("_", " ").replace("loss", "all"), f"{first:.3f}", f"{last:.3f}")
        for name, (first, last) in ends.items()
    ]
    seconds = facts.report.get("seconds", {})
    versions = ", ".join(
        f"{name} {environment[name]}" for name in ("torch", "transformers", "accelerate") if name in environment
    )
    device = f"{environment['device']}, {environment['threads']} threads" if "device" in environment else ""
    return {
        "steps": training.get("steps"),
        "epochs": f"{training['epochs']:g}" if "epochs" in training else "",
        "losses": "\n".join(markdown(("loss", "first", "last"), rows)) if rows else "",
        "hardware": "; ".join(part for part in (device, versions) if part),
        "seconds": "Seconds: " + ", ".join(f"{name} {value:g}" for name, value in seconds.items()) + "."
        if seconds
        else "",
        "recipe": yaml.safe_dump(facts.recipe, sort_keys=False, allow_unicode=True).strip() if facts.recipe else "",
    }


def _emissions(kilograms: float) -> dict[str, Any]:
    """In grams, as the Hub wants them."""
    return {"emissions": round(1000 * kilograms, 3), "source": "codecarbon"}
