"""FSDP2 as accelerate sets it up, on two CPU processes: trained, saved, resumed; and the accelerate configs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from conftest import make_pairs, tiny_roberta_config, tiny_vit_config
from launch_helpers import launch
from pacl import PACLConfig, PACLModel
from pacl.training.arguments import parse_settings
from pacl.training.run import Run, _stage_three
from run_folder import in_fresh_python
from stage_helpers import tiny_resnet, tiny_roberta
from test_trainer_distributed import assert_same_training, trained, trainer_for

CONFIGS = Path(__file__).parent.parent / "recipes" / "accelerate"


def fsdp_environment():
    """What `accelerate launch --config_file recipes/accelerate/fsdp2.yaml` tells its processes about FSDP."""
    words = launch_command_parser().parse_args(["--config_file", str(CONFIGS / "fsdp2.yaml"), "train.py"])
    environment = prepare_multi_gpu_env(_validate_launch_command(words)[0])
    return {name: value for name, value in environment.items() if "FSDP" in name}


def use_fsdp_on_the_cpu(environment):
    """accelerate itself has FSDP for accelerators only. Let it take this CPU for one."""
    os.environ.update(environment, ACCELERATE_TORCH_DEVICE="cpu")
    PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)


def resnet_model():
    return PACLModel.from_vision_text_pretrained(tiny_resnet().resnet, tiny_roberta(), projection_dim=16).double()


def ddp_and_fsdp(folder, processor, environment):
    """The same trainings with DDP and with FSDP."""
    few, whole = {"max_steps": 2, "learning_rate": 1e-3}, {"eval_strategy": "epoch", "per_device_eval_batch_size": 8}
    ddp = [trained(folder, processor, **whole), trained(folder, processor, model=resnet_model(), **few)]
    os.environ.update(environment)
    assert not trainer_for(folder, processor).is_fsdp_enabled, "then accelerate has it on the CPU, and needs no help"
    use_fsdp_on_the_cpu(environment)
    assert trainer_for(folder, processor, use_cpu=False).is_fsdp_enabled
    fsdp = [
        trained(folder, processor, use_cpu=False, **whole),
        trained(folder, processor, use_cpu=False, model=resnet_model(), **few),
    ]
    return list(zip(ddp, fsdp, strict=True))


def test_fsdp_has_the_losses_gradients_and_weights_of_data_parallelism(tmp_path, processor):
    """For a ViT in all phases, and for a ResNet."""
    first, _ = launch(ddp_and_fsdp, 2, tmp_path, processor, fsdp_environment())
    for ddp, fsdp in first:
        assert_same_training([fsdp], ddp)
    assert len([entry for entry in first[0][1]["log"] if "eval_loss" in entry]) == 3


def straight_and_resumed(folder, processor, environment):
    """Stage 3 of the main job with FSDP, and once more from its checkpoint in mid-epoch."""
    use_fsdp_on_the_cpu(environment)
    stage_three(folder / "straight", processor)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        where = "checkpoints/checkpoint-4"
        shutil.copytree(folder / "straight" / where, folder / "resumed" / where)
    torch.distributed.barrier()
    stage_three(folder / "resumed", processor)


def stage_three(folder, processor):
    words = ["--num_train_epochs=3", "--per_device_train_batch_size=8", "--use_cpu=false", f"--output_dir={folder}"]
    words += ["--save_strategy=steps", "--save_steps=1", "--save_total_limit=30", "--disable_tqdm=true"]
    job = Run(parse_settings(words), folder, report={"seconds": {}})
    job.settings.training.output_dir = str(folder / "checkpoints")
    job.dataset = make_pairs(96)
    torch.manual_seed(0)
    towers = {"vision_config": tiny_vit_config().to_dict(), "text_config": tiny_roberta_config().to_dict()}
    _stage_three(job, PACLModel(PACLConfig(**towers, projection_dim=16)), processor)


def test_what_fsdp_leaves_is_whole_and_a_resumed_run_ends_the_same(tmp_path, processor):
    launch(straight_and_resumed, 2, tmp_path, processor, fsdp_environment())
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    names = [int(path.name.split("-")[1]) for path in (straight / "checkpoints").iterdir()]
    assert not (resumed / "checkpoints" / "checkpoint-3").exists()

    backbone = transformers.AutoModel.from_pretrained(straight / "backbone", add_pooling_layer=False).state_dict()
    dual = PACLModel.from_pretrained(straight / "dual_encoder").state_dict()
    last = PACLModel.from_pretrained(straight / "checkpoints" / f"checkpoint-{max(names)}").state_dict()
    again = PACLModel.from_pretrained(resumed / "dual_encoder").state_dict()
    assert all(torch.equal(value, dual[f"vision_model.{name}"]) for name, value in backbone.items())
    for name, value in dual.items():
        assert torch.equal(value, last[name]), name
        assert torch.equal(value, again[name]), name
    before = PACLModel.from_pretrained(straight / "checkpoints" / "checkpoint-1").state_dict()
    assert [name for name, value in dual.items() if not torch.equal(value, before[name])]

    script = (
        f"from transformers import AutoModel; print(type(AutoModel.from_pretrained({str(straight / 'backbone')!r})))"
    )
    assert "ViTModel" in in_fresh_python(script, tmp_path / "fresh")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("multi_cpu", "MULTI_GPU"), ("multi_gpu", "MULTI_GPU"), ("fsdp2", "FSDP"), ("zero2", "DEEPSPEED")],
)
def test_accelerate_reads_the_configs_that_ship(name, kind):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == DistributedType(kind)
    assert config.num_processes > 1
    assert config.mixed_precision == "no", "precision is the recipe's"


def test_the_cpu_config_starts_two_processes(tmp_path):
    (tmp_path / "who.py").write_text(
        "from accelerate import PartialState\n"
        "state = PartialState(cpu=True)\n"  # the recipe's use_cpu
        "print(f'{state.process_index} of {state.num_processes}\\n', end='')\n"
    )
    command = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "multi_cpu.yaml")]
    command += ["--main_process_port", "0", "who.py"]
    result = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert {"0 of 2", "1 of 2"} <= set(result.stdout.splitlines())
