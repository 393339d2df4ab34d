"""Cards: every figure is read from the run's own files, what they lack is not claimed, and their code runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard
from PIL import Image
from safetensors.torch import save_file

from conftest import random_pictures
from pacl import PACLModel
from pacl.hub_cards.cards import write_backbone_card, write_classifier_card, write_dual_encoder_card
from pacl.hub_cards.classifier import export_classifier
from pacl.hub_cards.dataset_card import write_dataset_card
from pacl.hub_cards.export_vision_text import export_vision_text_dual_encoder
from pacl.hub_cards.exports import export_backbone
from pacl.hub_cards.facts import read_facts, without_local_paths
from run_folder import RECIPE, make_run, make_trainer


def backbone_card(run, **options):
    return ModelCard.load(write_backbone_card(run / "backbone", run, repo_id="org/name", **options))


def dual_encoder_card(run):
    return ModelCard.load(write_dual_encoder_card(run / "dual_encoder", run, repo_id="org/name"))


def change_report(run, **changes):
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(report | changes))


def change_recipe(run, **changes):
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | changes))


def figures(card):
    return {(result.dataset_name, result.metric_name): result.metric_value for result in card.data.eval_results or []}


def code_of(card: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)


def execute(code: str) -> dict:
    """Run a card's code as it is printed, where `org/name` is a folder; and what it leaves."""
    random_pictures(1)[0].save("picture.jpg")
    names: dict = {}
    exec(code, names)
    return names


# Results -------------------------------------------------------------------------------------------------------------


def test_results_are_those_of_the_runs_files(run):
    assert figures(backbone_card(run)) == {
        ("built-in pictures, emotion (90)", "accuracy, linear probe, mean of 3 seeds"): 0.75,
        ("FI", "accuracy, linear evaluation, mean of 2 seeds"): 0.59,
    }
    assert figures(dual_encoder_card(run)) == {
        ("built-in pictures, emotion, 2 classes (90)", "accuracy (ensemble), zero-shot"): 0.6,
        ("FI", "accuracy (A photo with [C] emotion.), zero-shot"): 0.31,
    }


def test_a_card_follows_a_figure_that_changes_in_the_files(run):
    report = json.loads((run / "report.json").read_text())
    report["probes"]["emotion"]["after"]["accuracy"]["mean"] = 0.8125
    report["training"]["steps"] = 4321
    report["partition"]["shares"]["strong"] = 0.123
    (run / "report.json").write_text(json.dumps(report))
    results = json.loads((run / "evaluation" / "results.json").read_text())
    results[2]["metrics"]["accuracy"] = 0.7
    (run / "evaluation" / "results.json").write_text(json.dumps(results))
    card = backbone_card(run)
    assert sorted(figures(card).values()) == [0.65, 0.8125]
    for text in ("81.25 %", "65.00 %", "4321 steps", "12.3%"):
        assert text in card.text


def test_without_the_files_no_result_is_claimed(run):
    (run / "report.json").unlink()
    shutil.rmtree(run / "evaluation")
    for card in (backbone_card(run), dual_encoder_card(run)):
        assert card.data.eval_results is None
        assert "model-index" not in card.content
        assert "so none is claimed" in card.text
        assert "of the posts and their partition nothing is known" in card.text
        results = card.text[card.text.index("## Results") : card.text.index("## Limits")]
        assert not re.search(r"\d", results)


def test_results_of_other_models_are_not_claimed(run):
    assert "99.00" not in backbone_card(run).content
    shutil.move(run, run.with_name("other"))
    assert ("FI", "accuracy, linear evaluation, mean of 2 seeds") not in figures(backbone_card(run.with_name("other")))


def test_the_papers_figures_stand_beside_ours(run):
    row = next(line for line in backbone_card(run).text.splitlines() if line.startswith("| FI"))
    assert "51.00 % | 59.00 % ± 1.41 % | +8.00 (+5.00 to +11.00) | ResNet-50 57.72 → 59.50 %" in row
    row = next(line for line in dual_encoder_card(run).text.splitlines() if line.startswith("| FI"))
    assert "CLIP 20.71 %; ResNet-50 + PACL 25.58 %" in row


def test_shares_stand_beside_the_papers_and_losses_go_from_first_to_last(run):
    text = backbone_card(run).text
    assert "| strong | 25.0% | 22% |" in text
    assert "| partial, both kinds | 50.0% | 51% |" in text
    assert "| strong | 2.950 | 1.150 |" in text
    assert "Hardware: cpu, 2 threads" in text
    assert "train 61" in text


def test_an_evaluation_folder_that_holds_none_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"no results\.json"):
        backbone_card(run, evaluation=tmp_path)


def test_a_file_that_is_broken_is_named(run):
    (run / "report.json").write_text("{")
    with pytest.raises(ValueError, match=r"report\.json cannot be read"):
        backbone_card(run)


def test_carbon_is_told_only_where_it_was_measured(run):
    card = backbone_card(run)
    assert "Carbon" not in card.text
    (run / "emissions.csv").write_text("timestamp,emissions\nmonday,0.001\ntuesday,0.0125\n")
    card = backbone_card(run)
    assert "Carbon: 0.0125 kg" in card.text
    assert card.data["co2_eq_emissions"] == {"emissions": 12.5, "source": "codecarbon"}


# What it was made from -----------------------------------------------------------------------------------------------


def test_only_the_licences_of_what_was_used_are_told(run):
    text = backbone_card(run).text
    assert "**SKEP**" in text
    assert "**BERTweet** (judge of emotion): its sentiment checkpoints by pysentimiento are for non-commercial" in text
    assert "**TumEmo**" in text
    assert "MVSA" not in text
    change_recipe(run, posts="data/MVSA-Single", emotional_text_encoder=None, text_tower="FacebookAI/roberta-base")
    text = backbone_card(run).text
    assert "**MVSA**" in text
    assert not {word for word in ("SKEP", "BERTweet", "TumEmo") if word in text}
    assert "`FacebookAI/roberta-base` this card knows no terms" in text


def test_the_licence_is_ours_only_where_all_sources_are(run):
    assert backbone_card(run).data.license == "other"
    (run / "recipe.yaml").write_text("posts: built-in\nnum_posts: 300\n")
    card = backbone_card(run)
    assert card.data.license == "apache-2.0"
    assert "of no use on photographs" in card.text


def test_base_model_and_posts_are_named_where_they_are_on_the_hub(run):
    card = backbone_card(run)
    assert card.data.base_model == "microsoft/resnet-50"
    assert card.data.datasets == ["someone/tumemo-posts"]
    change_recipe(run, vision_tower="/".join(["", "home", "me", "resnet"]))
    assert backbone_card(run).data.base_model is None


def test_nothing_of_the_authors_machine_is_told(run):
    change_recipe(run, posts="/".join(["", "home", "me", "secret", "posts"]), hub_token="hf_ThisIsOurSecret")
    text = backbone_card(run).content
    assert "…/secret/posts" in text
    for word in ("/home", "hf_This", "output_dir", str(run)):
        assert word not in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("org/name", "org/name"),
        ("data/posts.jsonl", "data/posts.jsonl"),
        ("/".join(["", "srv", "a", "b", "c"]), "…/b/c"),
        ("oasis=~/data/oasis", "oasis=…/data/oasis"),
        ("C:\\Users\\me\\posts", "…/me/posts"),
        (0.7, 0.7),
    ],
)
def test_paths_are_cut_and_names_are_not(value, shown):
    assert without_local_paths({"a": [value]}) == {"a": [shown]}


# The text ------------------------------------------------------------------------------------------------------------


def test_every_card_says_what_it_must_not_be_used_for_and_whom_to_cite(run):
    folder = run / "backbone"
    paths = [
        write_backbone_card(folder, run, repo_id="org/name"),
        write_classifier_card(folder, run, repo_id="org/name"),
        write_dual_encoder_card(run / "dual_encoder", run, repo_id="org/name"),
        write_dataset_card(run / "dataset", run, repo_id="org/name"),
    ]
    for path in paths:
        text = path.read_text()
        assert "AI Act, Article 5(1)(f)" in text
        assert "2511.17103" in text
        assert "### Licences" in text
        assert "{{" not in text
        assert "{%" not in text
        assert "\n\n\n" not in text
        assert "None" not in text


def test_a_dataset_card_tells_columns_shares_judges_and_rejections(run):
    card = DatasetCard.load(write_dataset_card(run / "dataset", run, repo_id="org/posts"))
    assert card.data["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert card.data.size_categories == "n<1K"
    for text in (
        "| `text_features` | 24 × float16 |",
        "| `partition` | ClassLabel |",
        "48 posts, sorted at factual score 0.700, emotional score 0.600",
        "2 posts were left out: 2 × empty text.",
        "emotional_text_encoder `finiteautomata/bertweet-base-sentiment-analysis`",
        "**TumEmo**",
    ):
        assert text in card.text
    (run / "report.json").unlink()
    text = DatasetCard.load(write_dataset_card(run / "dataset", run, repo_id="org/posts")).text
    assert "nothing is known of rejected posts" in text
    assert "48 posts" not in text


def test_a_classifiers_card_names_its_classes_and_claims_nothing(run):
    config = {"architectures": ["ResNetForImageClassification"], "id2label": {"0": "amusement", "1": "awe"}}
    (run / "backbone" / "config.json").write_text(json.dumps(config))
    card = ModelCard.load(write_classifier_card(run / "backbone", run, repo_id="org/name"))
    assert "It names 2 classes: amusement, awe." in card.text
    assert card.data.eval_results is None
    assert card.data.pipeline_tag == "image-classification"


@pytest.mark.parametrize("vision", ["resnet", "vit"])
def test_the_code_of_a_backbones_card_gives_the_features_that_were_trained(tmp_path, monkeypatch, vision):
    run = make_run(tmp_path / "mine", vision=vision)
    monkeypatch.chdir(tmp_path)
    notes = export_backbone(run, "org/name").notes
    (code,) = code_of(write_backbone_card("org/name", run, repo_id="org/name", notes=notes))
    names = execute(code)
    model = PACLModel.from_pretrained(run / "dual_encoder").eval()
    pixels = names["processor"](Image.open("picture.jpg").convert("RGB"), return_tensors="pt").pixel_values
    torch.testing.assert_close(names["features"], model.encode_image(pixels), rtol=1e-4, atol=1e-5)


def test_the_code_of_a_classifiers_card_runs(run, tmp_path, monkeypatch):
    heads = tmp_path / "fi-seed0.safetensors"
    facts = {"task": "single_label", "dataset": "fi", "pooling": "auto", "outputs": '{"emotion": ["awe", "fear"]}'}
    save_file({"emotion.weight": torch.randn(2, 16), "emotion.bias": torch.zeros(2)}, heads, metadata=facts)
    monkeypatch.chdir(tmp_path)
    notes = export_classifier(run, heads, "org/name").notes
    (code,) = code_of(write_classifier_card("org/name", run, repo_id="org/name", notes=notes))
    assert {score["label"] for score in execute(code)["scores"]} == {"awe", "fear"}
    assert "trained on fi" in Path("org/name/README.md").read_text()


def test_the_code_of_a_plain_dual_encoders_card_runs_and_needs_nothing_of_ours(tmp_path, monkeypatch):
    run = make_run(tmp_path / "mine", vision="vit")
    monkeypatch.chdir(tmp_path)
    notes = export_vision_text_dual_encoder(run, "org/name").notes
    card = write_dual_encoder_card("org/name", run, repo_id="org/name", notes=notes)
    (code,) = code_of(card)
    assert "pacl" not in code
    assert "trust" not in card.read_text()
    assert {score["label"] for score in execute(code)["scores"]} == {"joy", "sadness"}


# The trainer ---------------------------------------------------------------------------------------------------------


def test_the_trainer_writes_our_card(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path / "out")
    trainer.train()
    trainer.create_model_card(model_name="mine", tags="mine too", license="mit")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "48 posts" in card.text
    assert f"{trainer.state.global_step} steps" in card.text
    assert "learning_rate" in card.text
    assert {"pacl-dual-encoder", "mine too"} <= set(card.data.tags)
    assert card.data.license == "mit"
    assert card.data.eval_results is None
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_inside_a_run_the_trainers_card_tells_the_recipe(model, processor, run):
    trainer = make_trainer(model, processor, run / "checkpoints")
    trainer.create_model_card()
    card = ModelCard.load(run / "checkpoints" / "README.md")
    assert "**TumEmo**" in card.text
    assert "without 2 that were rejected" in card.text
    assert card.data.eval_results is None, "they were measured on other weights"


def test_facts_of_an_empty_folder_are_empty(tmp_path):
    facts = read_facts(tmp_path)
    assert (facts.recipe, facts.report, facts.results, facts.emissions) == ({}, {}, [], None)
