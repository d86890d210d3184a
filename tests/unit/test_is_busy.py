"""Pulls and rows hold back while a text is written, by whichever plan it is."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from coordinator.installer import Installer


@pytest.mark.parametrize(
    ("former", "coming", "busy"),
    [(False, None, False), (True, None, True), (False, True, True), (False, False, False)],
)
def test_a_text_that_has_moved_counts(former: bool, coming: bool | None, busy: bool) -> None:
    installer = cast("Any", Installer.__new__(Installer))
    installer._engine = SimpleNamespace(is_busy=former)
    installer._coming = None if coming is None else SimpleNamespace(is_busy=coming)
    assert installer.is_busy is busy
