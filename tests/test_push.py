"""Pushing over real HTTP on loopback: what arrives, and what comes back in a process that knows nothing of us."""

from __future__ import annotations

import json
import logging
import re
import shutil

import pytest
import torch
from huggingface_hub import HfApi, constants
from transformers import AutoImageProcessor, AutoModel

from hub_server import running_hub
from pacl import PACLModel, PACLProcessor
from pacl.hub_cards.__main__ import main
from pacl.hub_cards.push import PushError, plan_push, plan_pushes, push
from run_folder import RECIPE, in_fresh_python, make_run, make_trainer

TOKEN, OTHERS, WRONG = "hf_ThisIsOurSecret", "hf_SomebodyElses", "hf_NobodysToken"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub({TOKEN: ["me", "org"], OTHERS: ["other"]}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "agents.json"), raising=False)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it remembers an endpoint
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def no_waiting(monkeypatch):
    """The client waits longer and longer between two attempts; not here."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def environment(hub, token=TOKEN):
    return {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": token}


def usage(card: str, holding: str) -> str:
    """The code of a card, as it is printed, that holds something."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if holding in block]
    return block


def test_a_pushed_backbone_gives_the_same_features_in_a_python_without_pacl(hub, run, tmp_path):
    push(plan_push(run, "org/name"))
    card = hub.repo("org/name").files()["README.md"].decode()
    script = usage(card, "AutoModel") + "\nprint(type(model).__module__)\ntorch.save(features, 'features.pt')\n"
    said = in_fresh_python(script, tmp_path / "user", **environment(hub))
    assert "transformers.models.resnet" in said
    local, processor = (kind.from_pretrained(run / "backbone") for kind in (AutoModel, AutoImageProcessor))
    picture = processor(open_picture(tmp_path / "user"), return_tensors="pt")
    expected = local.eval()(**picture).pooler_output.flatten(1)
    torch.testing.assert_close(torch.load(tmp_path / "user" / "features.pt"), expected)


def open_picture(folder):
    from PIL import Image

    return Image.open(folder / "picture.jpg").convert("RGB")


@pytest.mark.slow
def test_a_pushed_timm_backbone_loads_by_timm_and_by_transformers(hub, tmp_path):
    run = make_run(tmp_path / "mine", vision="timm")
    push(plan_push(run, "org/name"))
    card = hub.repo("org/name").files()["README.md"].decode()
    check = "\nprint('same:', torch.allclose(by_timm(inputs.pixel_values), features, atol=1e-5))\n"
    script = usage(card, "timm.create_model") + "\nby_timm = model\n" + usage(card, "AutoModel") + check
    assert "same: True" in in_fresh_python(script, tmp_path / "user", **environment(hub))


TRUSTING = """
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained("org/dual", trust_remote_code=%s, revision=%r)
pixels = torch.load("pixels.pt")
torch.save(model.eval().get_image_features(pixels).pooler_output, "features.pt")
"""


def test_a_pinned_revision_runs_no_code_that_was_tampered_with_later(hub, run, tmp_path):
    push(plan_push(run, "org/dual", "dual_encoder"))
    repo = hub.repo("org/dual")
    pinned = repo.sha("main")
    evil = repo.files()["modeling_pacl.py"] + b"\nopen('evil', 'w').close()\n"
    repo.commit("main", {**repo.files(), "modeling_pacl.py": evil})

    user = tmp_path / "user"
    user.mkdir()
    pixels = torch.randn(2, 3, 32, 32)
    torch.save(pixels, user / "pixels.pt")
    in_fresh_python(TRUSTING % (True, pinned), user, **environment(hub))
    assert not (user / "evil").exists()
    expected = PACLModel.from_pretrained(run / "dual_encoder").eval().get_image_features(pixels).pooler_output
    torch.testing.assert_close(torch.load(user / "features.pt"), expected)

    in_fresh_python(TRUSTING % (True, "main"), user, **environment(hub))
    assert (user / "evil").exists(), "the test would not see code that is run"


@pytest.mark.parametrize("with_pacl", [False, True])
def test_a_dual_encoders_card_can_be_followed_with_and_without_pacl(hub, run, tmp_path, with_pacl):
    push(plan_push(run, "org/dual", "dual_encoder"))
    card = hub.repo("org/dual").files()["README.md"].decode()
    script = usage(card, "import pacl" if with_pacl else "trust_remote_code")
    script += "\nprint({score['label']: score['score'] for score in scores})"
    said = in_fresh_python(script, tmp_path / "user", with_pacl=with_pacl, **environment(hub))
    found = eval(re.search(r"\{.*\}", said)[0])
    model, processor = (
        PACLModel.from_pretrained(run / "dual_encoder").eval(),
        PACLProcessor.from_pretrained(run / "dual_encoder"),
    )
    texts = [f"A photo with {label} emotion." for label in ("joy", "sadness")]
    inputs = processor(images=open_picture(tmp_path / "user"), text=texts, padding=True, return_tensors="pt")
    expected = model(**inputs).logits_per_image.softmax(dim=-1)[0]
    assert [found["joy"], found["sadness"]] == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_pushed_dataset_comes_back_as_it_was(hub, run, tmp_path, monkeypatch):
    monkeypatch.setattr("pacl.hub_cards.staging.POSTS_PER_SHARD", 20)
    push(plan_push(run, "org/posts", "dataset"))
    repo = hub.repo("org/posts", "dataset")
    assert sorted(path for path in repo.files() if path.endswith(".parquet")) == [
        f"data/train-{number:05d}-of-00003.parquet" for number in range(3)
    ]
    script = (
        usage(repo.files()["README.md"].decode(), "load_dataset") + "\nposts.save_to_disk('posts')\nprint(partition)"
    )
    said = in_fresh_python(script, tmp_path / "user", **environment(hub))
    from datasets import load_from_disk

    before, after = load_from_disk(run / "dataset"), load_from_disk(tmp_path / "user" / "posts")
    assert after.features == before.features
    assert after.remove_columns("image")[:] == before.remove_columns("image")[:]
    assert [picture.tobytes() for picture in after["image"]] == [picture.tobytes() for picture in before["image"]]
    assert before.features["partition"].int2str(before[0]["partition"]) in said


def test_fewer_shards_leave_none_of_the_old_behind(hub, run, monkeypatch):
    monkeypatch.setattr("pacl.hub_cards.staging.POSTS_PER_SHARD", 20)
    push(plan_push(run, "org/posts", "dataset"))
    shutil.rmtree(run / "hub")
    monkeypatch.setattr("pacl.hub_cards.staging.POSTS_PER_SHARD", 100)
    plan = plan_push(run, "org/posts", "dataset")
    assert plan.removed == [f"data/train-{number:05d}-of-00003.parquet" for number in range(3)]
    push(plan)
    assert [path for path in hub.repo("org/posts", "dataset").files() if path.startswith("data/")] == [
        "data/train-00000-of-00001.parquet"
    ]


# Plans ---------------------------------------------------------------------------------------------------------------


def test_a_plan_sends_nothing_and_says_what_is_new_changed_and_the_same(hub, run):
    plan = plan_push(run, "org/name")
    assert not hub.repos
    assert {file.state for file in plan.files} == {"new"}
    assert "model.safetensors" in str(plan)
    assert "private" in str(plan)
    push(plan)
    report = json.loads((run / "report.json").read_text())
    report["training"]["steps"] = 21
    (run / "report.json").write_text(json.dumps(report))
    states = {file.path: file.state for file in plan_push(run, "org/name").files}
    assert states.pop("README.md") == "changed"
    assert set(states.values()) == {"same"}


def test_what_is_missing_is_named_and_not_pushed(hub, run):
    shutil.rmtree(run / "dual_encoder")
    plan = plan_push(run, "org/name", "dual_encoder")
    assert "dual_encoder/" in plan.missing[0]
    with pytest.raises(PushError, match="dual_encoder/"):
        push(plan)
    assert not hub.repos


def test_weights_that_are_not_safetensors_are_refused(hub, run):
    (run / "backbone" / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(PushError, match="pytorch_model.bin: only safetensors"):
        push(plan_push(run, "org/name"))
    assert not hub.repos


def test_without_the_hub_a_plan_can_still_be_made(hub, run, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    plan = plan_push(run, "org/name")
    assert "could not be asked" in plan.notes[0]
    assert plan.ready


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"what": "weights"}, "what must be one of"),
        ({"repo_id": "name"}, "ORG/NAME"),
        ({"repo_id": "org/na me"}, "repo_id"),
        ({"revision": "v1", "create_pr": True}, "exclude"),
        ({"run_folder": "nowhere"}, "recipe.yaml"),
    ],
)
def test_wrong_arguments_are_refused_by_name(run, changes, message):
    with pytest.raises(PushError, match=message):
        plan_push(**{"run_folder": run, "repo_id": "org/name", **changes})


# Who may, and where to -----------------------------------------------------------------------------------------------


def test_a_new_repo_is_private_unless_asked_otherwise(hub, run):
    push(plan_push(run, "org/hidden"))
    assert hub.repo("org/hidden").private
    push(plan_push(run, "org/open", private=False))
    assert not hub.repo("org/open").private


def test_a_public_repo_is_not_pushed_to_by_default(hub, run):
    push(plan_push(run, "org/open", private=False))
    with pytest.raises(PushError, match="is public"):
        push(plan_push(run, "org/open"))


def test_a_repo_made_public_after_the_plan_gets_nothing(hub, run):
    plan = plan_push(run, "org/open")
    HfApi(token=TOKEN).create_repo("org/open", private=False)
    with pytest.raises(PushError, match="is public"):
        push(plan)
    assert hub.uploads() == 0


def test_a_name_taken_by_another_is_refused(hub, run):
    push(plan_push(run, "other/name", private=False, token=OTHERS), token=OTHERS)
    sha = hub.repo("other/name").sha("main")
    (run / "report.json").unlink()
    with pytest.raises(PushError, match="may not write to other/name"):
        push(plan_push(run, "other/name", private=False))
    assert hub.repo("other/name").sha("main") == sha


def test_a_repo_that_holds_something_else_is_not_written_over(hub, run):
    push(plan_push(run, "org/name", "backbone"))
    with pytest.raises(PushError, match="is taken"):
        push(plan_push(run, "org/name", "dual_encoder"))
    push(plan_push(run, "org/name", "dual_encoder", replace_other=True))
    assert "modeling_pacl.py" in hub.repo("org/name").files()


def test_beside_a_backbone_the_dual_encoder_has_its_own_repo(hub, run):
    plans = plan_pushes(run, "org/name", ["backbone", "dual_encoder", "dataset", "evaluation"])
    assert [(plan.repo_type, plan.repo_id) for plan in plans] == [
        ("model", "org/name"),
        ("model", "org/name-dual-encoder"),
        ("dataset", "org/name"),
        ("model", "org/name"),
    ]


def test_a_pull_request_leaves_main_as_it_is(hub, run):
    push(plan_push(run, "org/name"))
    main_before = hub.repo("org/name").sha("main")
    (run / "report.json").unlink()
    address = push(plan_push(run, "org/name", create_pr=True))
    assert address.endswith("/discussions/1")
    assert hub.repo("org/name").sha("main") == main_before
    assert hub.repo("org/name").files("refs/pr/1")["README.md"] != hub.repo("org/name").files()["README.md"]


def test_a_revision_is_a_branch_of_its_own(hub, run):
    push(plan_push(run, "org/name", revision="v1"))
    assert "model.safetensors" in hub.repo("org/name").files("v1")
    assert "model.safetensors" not in hub.repo("org/name").files("main")
    assert not plan_push(run, "org/name", revision="v1").to_send


def test_evaluation_results_go_along_without_local_paths(hub, run):
    (run / "evaluation" / "results.md").write_text(f"| backbone | FI |\n| {run}/backbone | 59.00 |\n")
    push(plan_push(run, "org/name", "evaluation"))
    files = hub.repo("org/name").files()
    assert {"evaluation/report.json", "evaluation/results.json", "evaluation/comparisons.json"} <= set(files)
    for path, content in files.items():
        assert str(run.parent).encode() not in content, path
        assert RECIPE["output_dir"].encode() not in content, path
    assert "| …/mine/backbone | 59.00 |" in files["evaluation/results.md"].decode()
    assert json.loads(files["evaluation/results.json"])[2]["backbone"] == "…/mine/backbone"


# Connections and tokens ----------------------------------------------------------------------------------------------


def test_an_upload_cut_off_once_goes_through_by_itself(hub, run, no_waiting):
    hub.cuts = 1
    push(plan_push(run, "org/name"))
    assert hub.uploads() == 2
    assert "model.safetensors" in hub.repo("org/name").files()


def test_after_a_lost_connection_only_what_is_missing_is_sent(hub, run, no_waiting, monkeypatch):
    monkeypatch.setattr("pacl.hub_cards.staging.POSTS_PER_SHARD", 20)
    hub.cuts, hub.cut_after = 1000, 1
    with pytest.raises(PushError, match="connection .* was lost; push again"):
        push(plan_push(run, "org/posts", "dataset"))
    arrived = set(hub.objects)
    assert len(arrived) == 1
    assert list(hub.repo("org/posts", "dataset").files()) == [".gitattributes"]

    hub.cuts = 0
    hub.log.clear()
    push(plan_push(run, "org/posts", "dataset"))
    sent = [line.rsplit("/")[-1] for line in hub.log if line.startswith("PUT ")]
    assert len(sent) == 2
    assert not arrived & set(sent)
    assert sum(path.endswith(".parquet") for path in hub.repo("org/posts", "dataset").files()) == 3


@pytest.mark.parametrize("token", [WRONG, None])
def test_a_refused_token_says_how_to_sign_in(hub, run, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token or "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(run / "no_token"))
    plan = plan_push(run, "org/name", token=token)
    with pytest.raises(PushError, match="does not accept the token; sign in"):
        push(plan, token=token)
    assert not hub.repos


def test_no_token_is_ever_shown(hub, run, monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    errors = []
    for token in (WRONG, f"{TOKEN}\nagain", f"{TOKEN}é"):
        with pytest.raises(PushError) as caught:
            push(plan_push(run, "org/name", token=token), token=token)
        errors.append(repr(caught.value) + repr(caught.getrepr(chain=True)))
    plan = plan_push(run, "org/name", token=TOKEN)
    push(plan, token=TOKEN)
    said = capfd.readouterr()
    everything = "".join([*errors, caplog.text, said.out, said.err, str(plan), repr(plan), *hub.log])
    everything += b"".join(hub.repo("org/name").files().values()).decode(errors="ignore")
    assert TOKEN not in everything
    assert WRONG not in everything


# The trainer ---------------------------------------------------------------------------------------------------------


def test_the_trainer_pushes_with_our_card_privately_and_without_its_token(hub, model, processor, tmp_path):
    arguments = {"push_to_hub": True, "hub_model_id": "org/trained", "hub_token": TOKEN}
    trainer = make_trainer(model, processor, tmp_path / "out", **arguments)
    trainer.train()
    trainer.push_to_hub()
    repo = hub.repo("org/trained")
    assert repo.private
    card = repo.files()["README.md"].decode()
    assert "pacl-dual-encoder" in card
    assert 'model="org/trained"' in card
    assert "model.safetensors" in repo.files()
    assert trainer.args.hub_token == TOKEN
    for path, content in repo.files().items():
        assert TOKEN.encode() not in content, path


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_sends_nothing_until_told_yes(hub, run, capsys):
    asked = [str(run), "--repo_id", "org/name", "--what", "backbone", "evaluation"]
    main(asked)
    assert "This was a dry run" in capsys.readouterr().out
    main([*asked, "--yes", "--dry_run"])
    assert not hub.repos
    main([*asked, "--yes"])
    assert {"model.safetensors", "evaluation/results.json"} <= set(hub.repo("org/name").files())
    assert TOKEN not in capsys.readouterr().out


def test_the_command_ends_with_the_reason(hub, run, capsys):
    shutil.rmtree(run / "dataset")
    with pytest.raises(SystemExit, match="not ready"):
        main([str(run), "--repo_id", "org/name", "--what", "backbone", "dataset", "--yes"])
    assert "MISSING  dataset/" in capsys.readouterr().out
    assert not hub.repos, "all or none"
    with pytest.raises(SystemExit, match="pacl push: nowhere is no run's folder"):
        main(["nowhere", "--repo_id", "org/name"])
