"""Fits in parallel keep their order and leave the number of threads as it was."""

from __future__ import annotations

import pytest
import torch

from agents.training.runtime import choose_device, run_in_parallel
from leeroo_env import InputError


def test_results_come_in_order_from_one_thread_each():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert run_in_parallel(lambda: (1, torch.get_num_threads()), lambda: (2, torch.get_num_threads())) == [
            (1, 1),
            (2, 1),
        ]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_in_one_of_them_is_raised():
    with pytest.raises(InputError, match="broken"):
        run_in_parallel(lambda: 1, lambda: (_ for _ in ()).throw(InputError("broken")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="device cuda: torch finds no usable GPU here"):
        choose_device("cuda")
