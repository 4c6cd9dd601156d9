"""The one-pass loss against naive loops: on Triton's interpreter anywhere, on the device where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grpo_rm.fused import _tile, is_fusable
from grpo_rm.losses import Objective
from grpo_rm.rewards import accuracy_reward
from grpo_rm.sites import Sites

CASES = Path(__file__).with_name("fused_cases.py")


def run_cases(**environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", str(CASES)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_interpreter():
    run_cases(TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the kernel runs on the interpreter only")
def test_cuda():
    run_cases(TRITON_INTERPRET="0")


COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from grpo_rm import fused, kernels
from grpo_rm.losses import Objective
from grpo_rm.rewards import MatrixReward, accuracy_reward, uniformity_reward

rewards = {"a": accuracy_reward, "u": uniformity_reward, "m": MatrixReward(torch.zeros(5, 5))}
terms = {"beta": 0.1, "entropy_weight": 0.1, "supervised_weight": 0.1, "weighting": "policy"}
for logits, options, has_old, dtype in [
    (torch.empty(1, 9, 17).transpose(1, 2), {}, False, "*bf16"),
    (torch.empty(2, 5, 9), terms, True, "*fp32"),
]:
    names = ["a", "u", "m"] if has_old else ["a", "u"]
    weights = dict.fromkeys(names, 1.0)
    objective = Objective(rewards={name: rewards[name] for name in names}, reward_weights=weights, **options)
    settings = fused._settings(logits, objective, fused._row_names(objective), is_fresh=not has_old)
    kinds = {"logits": dtype, "gradient": dtype, "targets": "*i64", "weights": "*fp32", "partials": "*fp32"}
    kinds |= {"num_sites": "i32", "tiles": "i32"}
    if has_old:
        kinds |= {"old_logits": dtype, "reference_logits": dtype, "matrices": "*fp32"}
    signature = {name: kinds.get(name, "constexpr") for name in kernels.objective_kernel.arg_names}
    constants = {name: None for name, kind in signature.items() if kind == "constexpr"} | {"settings": settings}
    source = triton.compiler.ASTSource(kernels.objective_kernel, signature, constants)
    options = {"num_warps": fused._tile(logits).num_warps, "enable_fp_fusion": True}
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]
"""


def test_compiles(tmp_path):
    """For a GPU, without one: the interpreter takes what the compiler does not."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_does_not_need_triton():
    code = "import sys; sys.modules['triton'] = None; import grpo_rm.fused"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_cpu_without_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    sites = Sites(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), torch.ones(2))
    settings = Objective(rewards={"accuracy": accuracy_reward}, reward_weights={"accuracy": 1.0})
    assert not is_fusable(sites, settings)


@pytest.mark.parametrize("outputs", [2, 3, 16, 17, 100, 150, 1000, 1024, 21841, 32768])
def test_rows_are_cut(outputs):
    """Chunks are powers of two, hold all outputs, and little else."""
    tile = _tile(torch.empty(1, 40, outputs).transpose(1, 2))
    assert all(size.bit_count() == 1 for size in (tile.block_outputs, tile.block_sites, tile.num_warps))
    assert tile.block_outputs * (tile.chunks - 1) < outputs <= tile.block_outputs * tile.chunks
    assert tile.block_outputs * tile.chunks <= max(1.25 * outputs, outputs + 15)
    assert tile.block_outputs * tile.chunks * tile.block_sites <= 32768


@pytest.mark.parametrize("outputs", [2, 21, 150, 321, 1024])
def test_columns_are_cut(outputs):
    tile = _tile(torch.empty(2, outputs, 100))
    assert tile.block_outputs * (tile.chunks - 1) < outputs <= tile.block_outputs * tile.chunks
    assert tile.block_outputs == tile.num_warps and tile.block_outputs <= max(outputs, 4)


def test_what_does_not_fit():
    assert _tile(torch.empty(1, 2, 32769).transpose(1, 2)) is None
    assert _tile(torch.empty(2, 1025, 9)) is None
