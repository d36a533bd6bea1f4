"""The block simulator of cuda_sim/ runs right kernels rightly and catches each planted bug."""

from __future__ import annotations

import ctypes

import cuda_sim
import pytest
import torch
from cuda_sim import Options, SimulatorError, build
from torch import Tensor

OPTIONS = [
    Options(order=order, seed=seed, early_copies=early, os_threads=threads)
    for order, seed, early, threads in (
        ("forward", 0, False, 1),
        ("reverse", 0, True, 2),
        ("random", 1, False, 2),
        ("random", 2, True, 3),
    )
]
WHERE = r"^block \d+, thread \d+: .*"
FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="session")
def library() -> cuda_sim.Library:
    return cuda_sim.Library("selftest", [build.HERE / "selftest.cpp"])


class Run:
    """Runs a kernel of cuda_sim/selftest.cpp; keeps its counters."""

    def __init__(self, library: cuda_sim.Library) -> None:
        self.library = library
        self.launches: list[cuda_sim.Launch] = []

    def __call__(
        self,
        name: str,
        a: Tensor,
        out: Tensor,
        n: int,
        b: Tensor | None = None,
        blocks: int = 2,
        options: Options = OPTIONS[0],
    ) -> Tensor:
        def memory(t: Tensor | None) -> tuple:
            if t is None:
                return None, ctypes.c_int64(a.nbytes)
            return ctypes.c_void_p(t.data_ptr()), ctypes.c_int64(t.nbytes)

        arguments = (*memory(a), *memory(b), *memory(out), n, blocks)
        self.launches = self.library.call("rnk_sim_selftest", options, name.encode(), *arguments)
        return out


@pytest.fixture
def run(library: cuda_sim.Library) -> Run:
    return Run(library)


def words(count: int) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (count,), dtype=torch.int32)


def copy(run: Run, name: str, **options) -> bool:
    """Whether 717 vectors of 16 bytes, which leave a tail, arrive."""
    a = words(717 * 4)
    return torch.equal(run(name, a, torch.zeros_like(a), 717, **options), a)


def matmul(run: Run, name: str, dtype: torch.dtype = torch.bfloat16, **options) -> float:
    """Relative error of a matrix of 83 x 32, which leaves a tail, times one of 32 x 16."""
    a, b = torch.randn(83, 32).to(dtype), torch.randn(32, 16).to(dtype)
    out = run(name, a, torch.zeros(83, 16), 83, b=b, blocks=3, **options)
    truth = a.double() @ b.double()
    return float((out - truth).norm() / truth.norm())


def exchange(run: Run, name: str, **options) -> tuple[Tensor, Tensor]:
    a = words(32)
    return a, run(name, a, torch.zeros(96, dtype=torch.int32), 13, blocks=1, **options)


def copy_words(run: Run, name: str, **options) -> bool:
    a = words(128)
    return torch.equal(run(name, a, torch.zeros_like(a), 0, **options), a)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("blocks", [1, 2, 3, 12])
def test_ring_copy(run: Run, options: Options, blocks: int) -> None:
    assert copy(run, "copy", blocks=blocks, options=options)
    (counted,) = run.launches
    assert counted["bytes_read"] == counted["bytes_written"] == 717 * 16
    assert counted["distinct_bytes_read"] == 717 * 16
    assert counted["sectors_written"] == 359  # 717 * 16 / 32, rounded up
    assert counted["cp_async_conflicts"] == counted["ld_shared_conflicts"] == 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("k", [16, 8])
@pytest.mark.parametrize("format", FORMATS)
def test_matmul(run: Run, format: str, k: int, options: Options) -> None:
    assert matmul(run, f"matmul {format} {k}", FORMATS[format], options=options) < 1e-6
    (counted,) = run.launches
    steps = 3 * 2 * (32 // k)  # of the sums of all warps
    assert counted[f"mma_k{k}"] == counted["ldmatrix"] == 2 * steps
    assert counted["ldmatrix_wavefronts"] == steps * k // 2
    assert counted["ldmatrix_conflicts"] == 0
    assert counted["barriers"] == 3


def tf32(x: Tensor, round: bool) -> Tensor:
    """float64 of 11 significant bits: rounded, halves away from zero, or the others dropped."""
    fraction, exponent = torch.frexp(x.double())
    whole = (fraction.abs() * 2**11 + 0.5 * round).floor()
    return torch.ldexp(whole.copysign(fraction), exponent - 11)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_matmul_in_tf32(run: Run, options: Options) -> None:
    """Matrix instructions drop bits; what was rounded before has none to drop."""
    a, b = torch.randn(16, 8), torch.randn(8, 8)
    b[0, 1:4] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    out = run("matmul tf32", a, torch.zeros(16, 8), 0, b=b, blocks=1, options=options)
    truth = tf32(a, round=False) @ tf32(b[:, 4:], round=True)
    assert (out[:, 4:] - truth).norm() < 1e-6 * truth.norm()
    assert (truth - a.double() @ b[:, 4:].double()).norm() > 1e-5 * truth.norm()
    assert out[:, 1].isnan().all() and out[:, 2:4].isinf().all()
    assert run.launches[0]["mma_tf32"] == 1


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_exchange_between_lanes(run: Run, options: Options) -> None:
    a, out = exchange(run, "exchange", options=options)
    turned, shuffled, shifted = out.view(3, 32)
    assert torch.equal(turned.view(torch.int16).view(8, 8), a.view(torch.int16).view(8, 8).T)
    assert torch.equal(shuffled, a[torch.arange(32) ^ 13])
    assert torch.equal(shifted, a.roll(-1))


def test_a_launch_reads_what_another_wrote(run: Run) -> None:
    assert copy(run, "chain")
    assert [launch["bytes_read"] for launch in run.launches] == [717 * 16] * 2


@pytest.mark.parametrize(
    ("stride", "sectors", "words", "rows"),
    # 32 lanes, each at `stride` bytes from the one before; the passes to read their words, and to
    # read matrices whose rows begin there (at a whole multiple of 16).
    [(4, 4, 1, 4), (8, 8, 2, 4), (64, 32, 16, 16), (128, 32, 32, 32), (144, 32, 4, 4)],
)
def test_cost_of_a_stride(run: Run, stride: int, sectors: int, words: int, rows: int) -> None:
    a = torch.zeros(32 * 36, dtype=torch.int32)
    run("cost", a, torch.zeros(32, dtype=torch.int16), stride, blocks=1)
    (counted,) = run.launches
    assert counted["sectors_read"] == sectors + 4  # 8 lanes read 16 bytes each
    assert counted["sectors_written"] == 2
    assert counted["bytes_read"] == 32 * 4 + 8 * 16
    assert counted["ld_shared_wavefronts"] == words + 4  # 16 bytes a lane: a quarter warp a pass
    assert counted["ld_shared_conflicts"] == words - 1
    assert counted["ldmatrix_wavefronts"] == rows
    assert counted["ldmatrix_conflicts"] == rows - 4


COPY_BUGS = {
    "dropped_barrier": r"race: .* since the last barrier by thread",
    "wrong_wait_count": r"ld_shared_16 .*race: reads what cp.async still writes by thread",
    "early_load": r"race: (reads what cp.async still writes|writes what was read) .*by thread",
    "read_one_too_far": r"cp_async_16 .*reads 16 bytes at offset 11472 of 'a'.*: out of range",
    "unguarded_tail": r"st_global_16 .*writes 16 bytes at offset \d+ of 'out'.*: out of range",
    "no_wait_at_exit": r"ends with a cp.async that it never waited for",
    "double_write": r"st_global_16 .*of 'out'.*: written twice",
    "misaligned_global": r"cp_async_16 .*of 'a'.*: misaligned",
    "misaligned_shared": r"cp_async_16 .*misaligned: 16 bytes at offset \d+ of shared memory",
    "write_to_input": r"st_global_16 .*of 'a'.*: it is read-only",
}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("bug", COPY_BUGS)
def test_bug_in_a_copy(run: Run, bug: str, options: Options) -> None:
    with pytest.raises(SimulatorError, match=WHERE + COPY_BUGS[bug]):
        copy(run, f"copy {bug}", options=options)


MATMUL_BUGS = {
    "dropped_barrier": r"race: .* since the last barrier by thread",
    "divergent_ldmatrix": r"divergence: other lanes of its warp wait in ldmatrix_x4",
    "misaligned_shared": r"ldmatrix_x4 .*misaligned: row at offset \d+ of shared memory",
    "outside_shared": r"ldmatrix_x4_trans .*outside the block's shared memory: row at offset 6656",
}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("bug", MATMUL_BUGS)
def test_bug_in_a_matmul(run: Run, bug: str, options: Options) -> None:
    with pytest.raises(SimulatorError, match=WHERE + MATMUL_BUGS[bug]):
        matmul(run, f"matmul {bug}", options=options)


WORDS_BUGS = {
    "missing_block": r"'out': 256 bytes were never written, the first at offset 0",
    "early_return": r"missed barrier: .*sync_threads .*1 threads of the block have ended",
    "different_barriers": r"mismatched barriers: .*thread 0 .*thread 32 ",
    "half_a_warp": r"deadlock: .*shfl_xor .*for the rest of its warp; .*sync_threads",
    "plain_dereference": WHERE + r".*of 'a' \(512 bytes\), and not through ptx.cuh",
}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("bug", WORDS_BUGS)
def test_bug_in_a_copy_of_words(run: Run, bug: str, options: Options) -> None:
    assert copy_words(run, "words", options=options)
    with pytest.raises(SimulatorError, match=WORDS_BUGS[bug]):
        copy_words(run, f"words {bug}", options=options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bug_in_an_exchange(run: Run, options: Options) -> None:
    with pytest.raises(SimulatorError, match=WHERE + r"race: .* since the last barrier by thread"):
        exchange(run, "exchange dropped_warp_sync", options=options)


def test_read_of_what_nobody_wrote(run: Run) -> None:
    with pytest.raises(SimulatorError, match=r"of 'b'.*: not written by an earlier launch"):
        copy(run, "chain without_first")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_swapped_fragment_gives_a_wrong_result(run: Run, options: Options) -> None:
    assert matmul(run, "matmul swapped_fragment", options=options) > 0.5


def test_a_race_shows_in_the_result_too(run: Run) -> None:
    """Poison and late copies show what the check for races, here off, would have reported."""
    late = Options(races=False)
    assert copy(run, "copy", options=late)
    assert not copy(run, "copy dropped_barrier", options=late)
    assert not matmul(run, "matmul dropped_barrier", options=late) < 1e-6


@pytest.mark.parametrize(("shared_bytes", "blocks"), [(1024, 1), (227 * 1024, 0)])
def test_impossible_launch(run: Run, shared_bytes: int, blocks: int) -> None:
    with pytest.raises(SimulatorError, match="invalid launch"):
        copy(run, "copy", blocks=blocks, options=Options(shared_bytes=shared_bytes))
