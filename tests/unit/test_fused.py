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
