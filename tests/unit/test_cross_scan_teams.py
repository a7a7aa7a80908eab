"""Which tensors the CUDA C++ cross scan is given, and which of its files are assembled for what; no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lamamba import native
from lamamba.compile.kernels import cross_scan_teams
from lamamba.native import cuda


def _inputs() -> list[torch.Tensor]:
    x, proj = torch.zeros(1, 8, 8, 16, dtype=torch.float16), torch.zeros(1, 8, 8, 16, dtype=torch.float16)
    return [x, proj, torch.zeros(4, 16, 2), torch.zeros(4, 16), torch.zeros(4, 16, 1), torch.zeros(4, 16)]


def test_what_begins_between_is_copied() -> None:
    whole = torch.arange(65, dtype=torch.float16)
    assert cross_scan_teams.aligned(whole).data_ptr() == whole.data_ptr()
    assert cross_scan_teams.aligned(whole[8:]).data_ptr() == whole[8:].data_ptr()
    for piece in (whole[1:], whole[4:], whole[::2], whole[:64].view(8, 8).T):
        found = cross_scan_teams.aligned(piece)
        assert found.is_contiguous()
        assert found.data_ptr() % 16 == 0
        assert torch.equal(found, piece)


def test_one_device_of_the_right_kind_and_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not cross_scan_teams.reaches(*_inputs())
    monkeypatch.setattr(cross_scan_teams, "_runs_on", lambda device: True)
    assert cross_scan_teams.reaches(*_inputs())
    for i in range(1, 6):
        elsewhere = _inputs()
        elsewhere[i] = elsewhere[i].to("meta")
        assert not cross_scan_teams.reaches(*elsewhere), i
    wide = _inputs()
    wide[1] = wide[1].float()
    assert not cross_scan_teams.reaches(*wide)


@pytest.mark.parametrize(
    ("kind", "capability", "made_for_cuda", "runs"),
    [("cuda", (8, 0), True, True), ("cuda", (12, 0), True, True), ("cuda", (7, 5), True, False),
     ("cuda", (9, 4), False, False), ("cpu", (9, 0), True, False)],
)  # fmt: skip
def test_devices(
    kind: str, capability: tuple[int, int], made_for_cuda: bool, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0" if made_for_cuda else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert cross_scan_teams._runs_on.__wrapped__(torch.device(kind, 0)) == runs


@pytest.mark.parametrize("from_cuda", [0, 3])
def test_kernels_of_triton_alone_do_not_count(from_cuda: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: True)
    numbers = {None: 5 + from_cuda, "ptx_cuda": from_cuda, "ptx": 5}
    monkeypatch.setattr(cuda, "add_kernels", lambda folder=None: numbers[folder and folder.name])
    assert cross_scan_teams._at_hand.__wrapped__() == (from_cuda > 0)


def test_both_packs_are_assembled(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the pack's list follows from Triton's kernels")
    from lamamba.compile import aot_assemble, aot_cuda
    from lamamba.native.cuda import FOLDERS

    folders = [native.PATH.with_name(name) for name in FOLDERS]
    tasks = aot_assemble.tasks_for(folders, {75, 90})
    assert {path for path, _ in tasks} == {path for folder in folders for path in folder.glob("*.xz")}
    assert {target for path, target in tasks if path.parent == aot_cuda.FOLDER} == {90}
    assert aot_assemble.tasks_for([tmp_path], {75, 90}) == []
