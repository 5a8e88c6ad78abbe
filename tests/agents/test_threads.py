"""The choice of threads: a flag decides, else a measurement, and nothing random is used up by it."""

from __future__ import annotations

import torch

from agents.training import threads
from agents.training.threads import choose_threads


def test_a_flag_decides_and_a_measurement_chooses_one_or_all(monkeypatch):
    before, generator = torch.get_num_threads(), torch.get_rng_state()
    try:
        assert choose_threads(3) == 3 and torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        for slower, chosen in ((1.0, 1), (0.5, 4)):  # many threads take as long as one, or half
            monkeypatch.setattr(threads, "_timed", lambda work, number, slower=slower: slower if number > 1 else 1.0)
            assert choose_threads() == chosen == torch.get_num_threads()
        assert torch.equal(generator, torch.get_rng_state())
    finally:
        torch.set_num_threads(before)
