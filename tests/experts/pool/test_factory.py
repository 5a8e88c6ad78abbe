"""Experts from specs: what a missing environment variable says."""

import pytest

from experts.pool import load_pool, make_experts
from experts.spending import SpendCap
from leeroo_env.errors import InputError
from tests.experts.pool.test_loader import REMOTE, write


def test_an_unset_variable_names_file_and_expert(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match=r"pool\.yaml: expert 'big': api_key_env: .* OPENAI_API_KEY is not set"):
        make_experts(load_pool(write(tmp_path, REMOTE)), None, SpendCap())
