"""What is applied to a model from outside changes how it computes, not what."""

import pytest
import torch
from torch import nn

from tests.train.crews import Member, plan_of, task_of
from worldline.parallel.mesh import Crew, ParallelPlan
from worldline.parallel.shard import Objective, prepare


@pytest.mark.filterwarnings("ignore")  # the tracer touches whatever it is given, deprecated or not
def test_compiled_blocks_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the compiler's tracer, which must follow packs and prompts of any lengths, but not its C++."""
    compiled = []

    def traced(module: nn.Module) -> None:
        compiled.append(module)
        compile_(module, backend="eager")

    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", traced)
    found = []
    for compiling in (False, True):
        plan = plan_of(Member(parallel=ParallelPlan(packs=4, compile=compiling)), steps=1)
        task = task_of(plan)
        with torch.no_grad():
            for i, parameter in enumerate(task.model.parameters()):  # zeros too, behind which nothing would learn
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(i))
        objective = Objective(task.model, task.loss)
        prepare(objective, Crew(plan.parallel, torch.device("cpu")), task.dtype)
        for step, number in ((0, 0), (0, 3), (1, 1)):
            objective(task.pack(step, number).data)[0].sum().backward()
        found.append({name: parameter.grad for name, parameter in task.model.named_parameters()})
    assert len(compiled) == 3  # two of the transformer, one of the text encoder
    plain, same = found
    for name, grad in plain.items():
        torch.testing.assert_close(same[name], grad, rtol=1e-4, atol=1e-6)
