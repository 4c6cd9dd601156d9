"""The one-pass loss against naive loops: on Triton's interpreter anywhere, on the device where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grpo_rm.fused import _cut, _tile, is_fusable
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
def test_cut(outputs):
    """Chunks are powers of two, hold all outputs, and little else."""
    size, chunks = _cut(outputs)
    assert size.bit_count() == 1 and chunks <= 8
    assert size * (chunks - 1) < outputs <= size * chunks
    assert size * chunks <= max(1.25 * outputs, outputs + 15)


@pytest.mark.parametrize(
    ("shape", "fits"), [((1, 32768, 5), True), ((1, 32769, 5), False), ((2, 4096, 9), True), ((2, 4097, 9), False)]
)
def test_tile_fits(shape, fits):
    """Rows may be as long as a tile; where sites are contiguous, a tile holds some of them."""
    images, outputs, sites = shape
    is_rows = images == 1
    logits = torch.empty(images, sites, outputs).transpose(1, 2) if is_rows else torch.empty(shape)
    assert (_tile(logits) is not None) == fits
