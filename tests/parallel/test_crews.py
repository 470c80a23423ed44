"""Several processes learn what one does: the same losses, weights and samples, however the work is cut.

`python -m tests.train.crews FOLDER 100` is the long form of the first test.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train import crews
from worldline.errors import UserError
from worldline.parallel.mesh import ParallelPlan, join
from worldline.train import checkpoint

ROOT = Path(__file__).parents[2]
STEPS = 8
NEAR = 1e-6  # relative; what is left is the order in which processes add fp32 gradients up
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks crews")


def run(code: str, folder: Path) -> dict:
    """Runs code in a process of its own that may fork, `crews` and `folder` given; what it prints last, from JSON."""
    start = "import json, os, signal, sys, time, torch\nfrom pathlib import Path\nfrom tests.train import crews\n"
    start += f"torch.set_num_threads(1)\nfolder = Path({str(folder)!r})\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", start + code]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def saved(run: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoint.load(run / "checkpoints" / f"step-{step:08d}").tensors


def apart(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], kind: str) -> float:
    """Norm of the difference of all tensors of a kind, over their norm."""
    assert left.keys() == right.keys()
    names = [name for name in left if name.startswith(kind)]
    difference, own = (
        torch.stack([value.double().norm() for value in values]).norm()
        for values in ([left[n].double() - right[n].double() for n in names], [left[n] for n in names])
    )
    return float(difference / own)


def test_losses_weights_and_samples_do_not_depend_on_how_the_work_is_cut(tmp_path):
    report = run(f"crews.main(folder, {STEPS}, list(crews.CREWS))", tmp_path)
    for name, crew in report.items():
        member = crews.CREWS[name]
        single = next(n for n, m in crews.CREWS.items() if m.optimizer == member.optimizer)
        assert crew["codes"] == [0] * member.size, name
        assert len(crew["losses"]) == STEPS
        assert crew["losses"] == pytest.approx(report[single]["losses"], rel=NEAR), name
        assert sorted(set(crew["samples"])) == sorted(set(report[single]["samples"])), name
        if member.parallel.packs == 4:
            assert crew["samples"] == report[single]["samples"], name
        for kind in ("model", "ema", "optim"):
            assert apart(saved(tmp_path / single, STEPS), saved(tmp_path / name, STEPS), kind) < NEAR, (name, kind)


RESHARD = """
from worldline.parallel.mesh import join
from worldline.parallel.shard import whole
from worldline.train import checkpoint
from worldline.train.run import Run

plan = crews.plan_of(crews.Member(), 8, every=1)
codes = crews.finish(crews.start(1, plan, folder / "alone"))

def reread(plan, out, resume, on_pack):
    run = Run(crews.task_of(plan), plan, out, join(plan.parallel))
    assert run.restore()
    held = {name: whole(run._spread(name, tensor)) for name, tensor in run.saver.tensors.items()}
    written = checkpoint.load(run.folder / f"step-{run.step:08d}").tensors
    assert held.keys() == written.keys()
    assert all(torch.equal(held[name], value) for name, value in written.items())

for until, size in zip((2, 4, 6, 8), (1, 2, 4, 1)):
    def stop(step, number, until=until):
        if step == until - 1:
            os.kill(os.getpid(), signal.SIGTERM)
    if until > 2:
        codes += crews.finish(crews.start(size, plan, folder / "resharded", work=reread))
    codes += crews.finish(crews.start(size, plan, folder / "resharded", resume=True, on_pack=stop))
print(json.dumps({"codes": codes, "alone": crews.samples(folder / "alone"),
    "resharded": crews.samples(folder / "resharded"),
    "losses": [crews.losses(folder / name) for name in ("alone", "resharded")]}))
"""


def test_a_run_goes_on_with_other_numbers_of_processes_and_sees_the_same_samples_in_order(tmp_path):
    report = run(RESHARD, tmp_path)
    assert report["codes"] == [0] * len(report["codes"])  # what a checkpoint holds is read by all crews to the bit
    assert report["resharded"] == report["alone"]
    assert len(report["alone"]) == 8 * 8
    truth, reached = (saved(tmp_path / name, 8) for name in ("alone", "resharded"))
    for kind in ("model", "ema", "optim"):
        assert apart(truth, reached, kind) < NEAR, kind
    assert report["losses"][1] == pytest.approx(report["losses"][0], rel=NEAR)
    log = [json.loads(line) for line in (tmp_path / "resharded" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == list(range(1, 9))


FAULTS = """
import errno
from worldline.train import checkpoint

plan = crews.plan_of(crews.Member(2), 8, every=2)
writer = checkpoint.HuggingFaceStorageWriter

def full(plan, out, resume, on_pack):
    if os.environ["RANK"] == "1":
        def refuse(self, *args, write=writer.write_data):
            if "00000004" in str(self.path):
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(self, *args)
        writer.write_data = refuse
    crews.member(plan, out, resume, on_pack)

def shards():
    return sorted(path.name for path in (folder / "hurt" / "checkpoints").iterdir())

codes = crews.finish(crews.start(2, plan, folder / "whole"))
codes += crews.finish(crews.start(2, plan, folder / "hurt", work=full))
before = shards()
newest = next((folder / "hurt" / "checkpoints" / "step-00000008").glob("shard-00002-*"))
data = bytearray(newest.read_bytes())
data[-1] ^= 1
newest.write_bytes(data)
codes += crews.finish(crews.start(2, plan, folder / "hurt", resume=True))
print(json.dumps({"codes": codes, "before": before, "after": shards()}))
"""


def test_two_processes_survive_a_full_disk_and_a_damaged_checkpoint_of_one(tmp_path):
    report = run(FAULTS, tmp_path)
    assert report["codes"] == [0] * 6
    assert report["before"] == ["step-00000002", "step-00000006", "step-00000008"]  # step 4 left nothing
    damaged = [name for name in report["after"] if name.startswith("damaged-00000008")]
    assert len(damaged) == 1
    assert {"step-00000006", "step-00000008"} < set(report["after"])
    whole, hurt = (saved(tmp_path / name, 8) for name in ("whole", "hurt"))
    assert all(torch.equal(value, hurt[name]) for name, value in whole.items())


OTHERS = """
from worldline.parallel.mesh import ParallelPlan
from worldline.train import captioner, vae
from worldline.train.loop import Pack, Task, train
from worldline.train.plan import LoopPlan, OptimPlan, torch_rng
from worldline.vae.model import MICRO, VideoVAE

common = dict(dtype="float32", optim=OptimPlan(lr=1e-3, warmup=2), parallel=ParallelPlan(packs=2))
common["loop"] = LoopPlan(steps=3, log_every=1, checkpoint_every=0, validate_every=0)

def autoencoder(plan, out, resume, on_pack):
    torch.manual_seed(0)
    def pack(step, number):
        pixels = torch.rand(2, 3, 5, 32, 32, generator=torch_rng(0, step, f"p{number}")) * 2 - 1
        return Pack(vae.Batch(pixels, torch_rng(0, step, f"n{number}"), 0.5), (2.0,))
    model = vae.Trainee(VideoVAE(plan.config))
    train(Task(model, pack, lambda m, b: vae.trainee_loss(plan, m, b), 4), plan, out, quiet=True)

def words(plan, out, resume, on_pack):
    def pack(step, number):
        noise = torch_rng(0, step, f"p{number}")
        draw = lambda low, high, *shape: torch.randint(low, high, shape, generator=noise, dtype=torch.uint8)
        layouts = draw(0, 255, 2, len(captioner.LESSON), 9, 8, 8)
        batch = captioner.Batch(draw(0, 255, 2, 9, 64, 64, 3), draw(3, 20, 2, 7).long(), layouts, None)
        return Pack(batch, (12.0, 2.0))
    train(Task(captioner.build(plan), pack, lambda m, b: captioner.word_loss(plan, m, b), 4), plan, out, quiet=True)

report = {}
kinds = ((vae.VAEPlan(config=MICRO, **common), autoencoder), (captioner.CaptionerPlan(**common), words))
for plan, work in kinds:
    for size in (1, 2):
        out = folder / f"{plan.name}-{size}"
        out.mkdir()
        codes = crews.finish(crews.start(size, plan, out, work=work))
        report.setdefault(plan.name, []).append([codes, crews.losses(out)])
print(json.dumps(report))
"""


def test_the_vae_and_the_captioner_train_on_two_processes_as_on_one(tmp_path):
    for name, ((codes, alone), (codes2, two)) in run(OTHERS, tmp_path).items():
        assert codes + codes2 == [0, 0, 0], name
        assert len(alone) == 3
        assert two == pytest.approx(alone, rel=1e-5), name


LOST = """
plan = crews.plan_of(crews.Member(4, crews.ParallelPlan(packs=4, timeout={timeout})), 1000)
def suffer(step, number):
    if step == 2 and number == 2:
        {what}
began = time.monotonic()
children = crews.start(4, plan, folder / "run", on_pack=suffer)
codes = []
for rank, child in enumerate(children):
    if rank == 2 and {stopped}:
        codes.append(None)
        continue
    codes += crews.finish([child])
if {stopped}:
    os.kill(children[2], signal.SIGKILL)
    crews.finish([children[2]])
print(json.dumps({{"codes": codes, "said": [path.read_text() for path in sorted((folder / "run").glob("lost-*"))]}}))
"""


@pytest.mark.parametrize(("what", "stopped", "timeout"), [("SIGKILL", False, 120.0), ("SIGSTOP", True, 25.0)])
def test_the_others_end_when_a_process_is_gone_or_hangs(tmp_path, what, stopped, timeout):
    code = LOST.format(what=f"os.kill(os.getpid(), signal.{what})", stopped=stopped, timeout=timeout)
    report = run(code, tmp_path)
    assert report["codes"] == [75, 75, None if stopped else -signal.SIGKILL, 75]
    assert len(report["said"]) == 3
    assert "process 2 gives no sign, it was last reading the samples of step 2" in report["said"][0]
    assert all("start again with --resume" in said for said in report["said"])


@pytest.mark.parametrize(
    ("plan", "size", "words"),
    [
        (ParallelPlan(packs=3), 2, "2 processes cannot share 3 packs; use --set parallel.packs=4"),
        (ParallelPlan(context=3), 4, "no multiple of context=3"),
        (ParallelPlan(replicate=0), 1, "parallel.replicate: 0 must be at least 1"),
        (ParallelPlan(recompute="some"), 1, "one of none, selective, full"),
    ],
)
def test_plans_that_do_not_fit_are_refused_in_one_line(plan, size, words):
    from worldline.parallel.mesh import _check

    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        _check(plan, size)


def test_one_process_is_a_crew_of_its_own():
    crew = join(ParallelPlan(packs=3))
    assert (crew.first, crew.packs(), crew.total([1.0, 2.0]), crew.gather("x")) == (True, [0, 1, 2], [1.0, 2.0], ["x"])
