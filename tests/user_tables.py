"""A cache folder of a test's own for the user's tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnext_kernels import dispatch, eager, ops, tuning, user_table


def forget() -> None:
    """Forget everything that was read from tables."""
    for cached in (user_table._load, tuning._shipped, dispatch.choose):
        cached.cache_clear()
    for plans in (eager._PLANS, ops._FPROP_PLANS, ops._BACKWARD_PLANS):
        plans.clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the tables, not there yet."""
    folder = tmp_path / "new" / "cache"
    monkeypatch.setenv(user_table.FOLDER, str(folder))
    forget()
    yield folder
    forget()


def table() -> Path:
    """The table of the backend "cpu"."""
    return user_table.path_of("cpu", "cpu")
