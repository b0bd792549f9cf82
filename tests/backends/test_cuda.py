"""What only a CUDA device shows: whole runs on it, and its memory. Skipped where there is none."""

from functools import partial

import models
import numpy as np
import pytest
import torch
from present import load_present

from edgeq.commands.progress import Silent
from edgeq.run.assembly import make_job
from edgeq.run.fitting import Sizes, fit_job
from edgeq.run.pipeline import quantize
from edgeq.run.report import read_report

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def cuda():
    return load_present("cuda")


@pytest.fixture
def glass_job():
    companions = {"tokenizer.json": models.glass_tokenizer().to_str().encode()}
    source = models.MemorySource(models.glass_llama(), companions=companions)
    settings = {"samples": 16, "sequence_length": 64, "bits": 3, "exact": True}
    return partial(make_job, source, settings, calibration=("speeches",))


def test_an_array_on_the_device_is_no_longer_free(cuda):
    free, _ = cuda.device_memory()
    taken = cuda.activations(np.zeros((4096, 4096)))
    assert free - cuda.device_memory()[0] >= taken.nbytes


def test_a_run_comes_to_the_losses_of_the_cpu(cuda, glass_job, tmp_path):
    losses = {}
    for name in ("cpu", cuda.name):
        checkpoint = quantize(glass_job(backend=name), tmp_path / name, Silent())
        layers = read_report(checkpoint).layers
        losses[name] = [loss for layer in layers for loss in layer.losses.values()]
    np.testing.assert_allclose(losses[cuda.name], losses["cpu"], rtol=0.02)


def test_a_run_takes_no_more_of_the_device_than_its_plan_says(cuda, glass_job, tmp_path):
    job, memory = fit_job(glass_job(backend="cuda"), Sizes(), tmp_path)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    quantize(job, tmp_path / "out", Silent())
    assert torch.cuda.max_memory_allocated() - before <= memory.on_device.total
