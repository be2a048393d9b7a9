"""One step against a plain re-computation of it in float64, where rounding flips no sign of the attack."""

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from robustcompress.errors import TrainingError
from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Pattern
from robustcompress.pruning.scores import Score
from robustcompress.robustness.threat import Threat
from robustcompress.seeding import generator_for
from robustcompress.training.objectives import Moment, Objective, StepView
from robustcompress.training.settings import StepSettings
from robustcompress.training.step import Precision, Stepper

MOMENT = Moment(epoch=0, epochs=1, step=0, steps=4)
THREAT = Threat(norm="linf", eps=0.1)
KINDS = ("natural", "pgd", "trades")


class Net(nn.Module):
    """A small residual network; ``norm=False`` leaves batch normalisation out."""

    def __init__(self, *, norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        made: Callable[[int], nn.Module] = nn.BatchNorm2d if norm else lambda _: nn.Identity()
        self.first = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, bias=not norm), made(6), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1), made(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), made(6)
        )
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images)
        hidden = F.relu(hidden + self.block(hidden))
        logits: Tensor = self.last(self.dropout(hidden.mean((2, 3))))
        return logits


class Bench:
    """A network in a training stage, one step of which can be run."""

    def __init__(
        self,
        *,
        objective: str | Objective = "trades",
        prune: bool = True,
        norm: bool = True,
        dropout: float = 0.0,
        network: nn.Module | None = None,
        precision: Precision = "fp32",
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        **settings: Any,
    ) -> None:
        torch.manual_seed(0)
        self.network = (network or Net(norm=norm, dropout=dropout)).to(dtype)
        self.network.to(device)
        self.images = torch.rand(9, 2, 8, 8, dtype=dtype).to(device)
        self.labels = torch.randint(4, (9,)).to(device)
        # Statistics that are not those of a new network.
        self.network.train()
        with torch.no_grad():
            self.network(self.images)
        plan = Pattern.find("unstructured").plan(self.network, self.images, ())
        self.masking = Masking(
            plan.sites,
            score=Score.find("learned"),
            budget=Budget.find("uniform"),
            sparsity=0.5,
            parameters=dict(self.network.named_parameters()),
        ).to(device)
        self.masking.refresh()
        if prune:
            for parameter in self.network.parameters():
                parameter.requires_grad_(parameter.ndim == 1)
        else:
            self.masking.freeze()
        self.before = copy.deepcopy(self.network)
        learnt = [*self.masking.learnable(), *(p for p in self.network.parameters() if p.requires_grad)]
        self.optimizer = torch.optim.SGD(learnt, lr=0.0)
        self.objective = objective if isinstance(objective, Objective) else Objective.find(objective)
        self.warnings: list[str] = []
        self.stepper = Stepper(
            self.network,
            self.masking,
            objective=self.objective,
            threat=THREAT,
            optimizer=self.optimizer,
            device=torch.device(device),
            precision=precision,
            clip_gradient=None,
            seed=7,
            settings=StepSettings(**settings),
            warn=self.warnings.append,
        )

    def step(self) -> float:
        return self.stepper.step(self.images, self.labels, MOMENT)

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradient of everything that learns; the learning rate is zero, so it stays there."""
        found = {f"score.{i}": s.grad for i, s in enumerate(self.masking.scores) if s.grad is not None}
        return found | {n: p.grad for n, p in self.network.named_parameters() if p.grad is not None}

    def plain(self, *, attack_steps: int = 10) -> tuple[float, dict[str, Tensor]]:
        """Return loss and gradients of TRADES, computed the slow way: masks by a sort in every forward."""
        network = self.before.train()
        scores = [s.detach().clone().requires_grad_() for s in self.masking.scores]
        weights = {
            site.parameters[0]: network.get_parameter(site.parameters[0]) for site in self.masking.sites
        }

        def masked() -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for (name, weight), score in zip(weights.items(), scores, strict=True):
                order = score.detach().abs().flatten().argsort(stable=True)
                mask = torch.ones(score.numel(), dtype=score.dtype)
                mask[order[: round(0.5 * score.numel())]] = 0
                # Equal to the mask in value; its gradient by the score is that of |score|.
                gate = mask.view_as(score) + score.abs() - score.detach().abs()
                found[name] = weight * gate
            return found

        def run(images: Tensor, *, train: bool) -> Tensor:
            network.train(train)
            logits: Tensor = functional_call(network, masked(), (images,))
            return logits

        images, labels = self.images, self.labels
        noise = torch.randn(images.shape, dtype=images.dtype, generator=generator_for("cpu", 7, "step", 0))
        points = (images + 1e-3 * noise).clamp(images - THREAT.eps, images + THREAT.eps).clamp(0, 1)
        for _ in range(attack_steps):
            points = points.detach().requires_grad_()
            target = run(images, train=False).softmax(1)
            divergence = F.kl_div(run(points, train=False).log_softmax(1), target, reduction="sum")
            (gradient,) = torch.autograd.grad(divergence, [points])
            points = points + 2.5 * THREAT.eps / attack_steps * gradient.sign()
            points = points.clamp(images - THREAT.eps, images + THREAT.eps).clamp(0, 1)
        clean, adversarial = run(images, train=True), run(points.detach(), train=True)
        divergence = F.kl_div(adversarial.log_softmax(1), clean.softmax(1), reduction="batchmean")
        loss = F.cross_entropy(clean, labels) + 6 * divergence
        loss.backward()
        found = {f"score.{i}": s.grad for i, s in enumerate(scores) if s.grad is not None}
        found |= {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        return float(loss.detach()), found


def close(ours: Mapping[str, Tensor], others: Mapping[str, Tensor], *, tolerance: float = 1e-8) -> None:
    assert set(ours) == set(others)
    for name, gradient in ours.items():
        scale = float(others[name].abs().max())
        assert float((gradient - others[name]).abs().max()) <= tolerance * max(scale, 1e-3), name


EXACT_SETTINGS: list[dict[str, Any]] = [
    {},
    {"fold_norms": True},
    {"memory_format": "channels_last"},
    {"recompute": "learner"},
    {"recompute": "everywhere"},
    {"fold_norms": True, "memory_format": "channels_last", "recompute": "everywhere"},
]


@pytest.mark.parametrize("prune", [True, False], ids=["scores", "weights"])
@pytest.mark.parametrize("settings", EXACT_SETTINGS, ids=str)
def test_a_step_has_the_loss_and_the_gradients_of_the_plain_procedure(
    settings: dict[str, Any], prune: bool
) -> None:
    bench = Bench(prune=prune, **settings)
    loss, gradients = bench.plain()
    assert bench.step() == pytest.approx(loss, rel=1e-9)
    if not prune:  # frozen scores have no gradient; a masked weight's gradient is zero in both
        gradients = {name: gradient for name, gradient in gradients.items() if not name.startswith("score")}
    close(bench.gradients(), gradients)
    assert not bench.warnings


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [2, 4, 9, 20])
def test_without_batch_norm_a_batch_in_parts_has_the_whole_batchs_gradient(kind: str, parts: int) -> None:
    whole, cut = Bench(objective=kind, norm=False), Bench(objective=kind, norm=False, micro_batches=parts)
    assert cut.step() == pytest.approx(whole.step(), rel=1e-9)
    close(cut.gradients(), whole.gradients())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_image_starts_at_the_same_random_point_in_whatever_part_it_is(norm: Any) -> None:
    images = torch.rand(7, 1, 4, 4)

    def points(rows: slice | None) -> Tensor:
        view = StepView(
            learning=lambda x: x,
            frozen=lambda x: x,
            model=nn.Identity(),
            tensors={},
            threat=Threat(norm=norm, eps=0.2),
            generator=torch.Generator().manual_seed(1),
            moment=MOMENT,
            rows=rows,
            batch=7,
        )
        part = images if rows is None else images[rows]
        return torch.cat([view.random_point(part), view.normal(part)])

    whole = points(None)
    part = points(slice(2, 5))
    torch.testing.assert_close(part, torch.cat([whole[2:5], whole[9:12]]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("where", ["learner", "everywhere"])
@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_changes_no_bit_of_gradients_and_statistics(kind: str, where: str) -> None:
    kept = Bench(objective=kind, dropout=0.5, dtype=torch.float32)
    again = Bench(objective=kind, dropout=0.5, dtype=torch.float32, recompute=where)
    assert kept.step() == again.step()
    for name, gradient in kept.gradients().items():
        assert torch.equal(gradient, again.gradients()[name]), name
    for name, buffer in kept.network.named_buffers():
        assert torch.equal(buffer, again.network.get_buffer(name)), name


def test_statistics_move_once_for_the_clean_and_once_for_the_adversarial_batch() -> None:
    bench = Bench()
    before = int(bench.network.get_buffer("first.1.num_batches_tracked"))
    bench.step()
    assert int(bench.network.get_buffer("first.1.num_batches_tracked")) == before + 2


def test_hydra_moves_statistics_as_its_code_does_clean_then_clean_adversarial_clean() -> None:
    bench = Bench(bn_updates="hydra", objective=Objective.find({"kind": "trades", "steps": 2}))
    seen: list[Tensor] = []
    statistics = bench.network.get_buffer("first.1.running_mean")
    expected = statistics.clone()
    hook = bench.stepper.networks.learner.get_submodule("first.0").register_forward_hook(
        lambda module, inputs, output: seen.append(output.detach().mean((0, 2, 3)))
    )
    bench.step()
    hook.remove()
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[0], seen[2])
    for mean in seen:
        expected = 0.9 * expected + 0.1 * mean
    torch.testing.assert_close(statistics, expected)


class Operations(TorchDispatchMode):
    """Counts convolutions by what they compute, and sorts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        if name.startswith("aten.convolution_backward"):
            wanted = "weights" if args[-1][1] else "images"
            self.seen[f"backward to {wanted}"] += 1
        elif name.startswith("aten.convolution"):
            self.seen["forward"] += 1
        elif "sort" in name or "topk" in name:
            self.seen["sort"] += 1
        elif name.startswith("aten.kthvalue"):
            self.seen["partition"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["pgd", "trades"])
def test_a_step_does_what_the_mathematics_needs_and_no_more(kind: str) -> None:
    steps, layers = 3, 3
    bench = Bench(objective=Objective.find({"kind": kind, "steps": steps}), dtype=torch.float32)
    with Operations() as operations:
        bench.step()
    passes = 2 if kind == "trades" else 1
    assert operations.seen == {
        "forward": layers * (steps + passes + (1 if kind == "trades" else 0)),
        "backward to images": layers * steps,
        "backward to weights": layers * passes,
        "partition": 4,  # one for each site, after the update
    }


def test_the_attack_sees_the_folded_network_and_keeps_up_with_its_statistics() -> None:
    bench = Bench(fold_norms=True)
    networks = bench.stepper.networks
    assert networks.folded == 3
    assert not [m for m in networks.attacked.modules() if isinstance(m, nn.BatchNorm2d)]
    for _ in range(2):
        bench.step()
        effective = bench.masking.tensors(dict(bench.network.named_parameters()))
        networks.refresh(effective)
        expected = functional_call(copy.deepcopy(bench.network).eval(), effective, (bench.images,))
        torch.testing.assert_close(networks.attacked(bench.images), expected, rtol=1e-10, atol=1e-10)


def test_a_network_that_cannot_be_traced_is_attacked_unfolded_and_says_so() -> None:
    class Branching(Net):
        def forward(self, images: Tensor) -> Tensor:
            return (
                super().forward(images)
                if float(images.detach().sum()) > 0
                else self.last(images[:, 0, 0, :6])
            )

    bench, plain = Bench(network=Branching(), fold_norms=True), Bench()
    bench.step()
    plain.step()
    assert len(bench.warnings) == 1
    assert bench.warnings[0].startswith("fold_norms does nothing: torch.fx cannot trace Branching")


def test_bfloat16_in_the_attack_leaves_the_learner_exact() -> None:
    adversarial: list[Tensor] = []

    class Watching(Objective):
        def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
            attacked = view.frozen(images)
            assert attacked.dtype == torch.float32
            adversarial.append(attacked)
            return F.cross_entropy(view.learning(images), labels)

    exact = Bench(objective=Watching(), dtype=torch.float32)
    rounded = Bench(objective=Watching(), dtype=torch.float32, attack_precision="bf16")
    assert rounded.step() == exact.step()
    for name, gradient in exact.gradients().items():
        assert torch.equal(gradient, rounded.gradients()[name])
    gap = float((adversarial[0] - adversarial[1]).abs().max() / adversarial[0].abs().max())
    assert 0 < gap < 0.05
    held = rounded.stepper.networks.attacked.get_parameter("first.0.weight")
    assert held.dtype == torch.bfloat16


def test_a_weight_that_two_layers_share_is_masked_in_both() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(2, 6, 1)
            self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.b.weight = self.a.weight
            self.norm, self.last = nn.BatchNorm2d(6), nn.Linear(6, 4)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.last(self.norm(self.b(self.a(self.stem(images)))).mean((2, 3)))
            return logits

    chosen: list[dict[str, Any]] = [{}, {"fold_norms": True}, {"memory_format": "channels_last"}]
    for settings in chosen:
        bench = Bench(network=Tied(), **settings)
        effective = bench.masking.tensors(dict(bench.network.named_parameters()))
        bench.stepper.networks.refresh(effective)
        expected = functional_call(copy.deepcopy(bench.network).eval(), effective, (bench.images,))
        torch.testing.assert_close(bench.stepper.networks.attacked(bench.images), expected)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["GPU", "CPU"],
)
def test_too_little_memory_names_the_settings_to_change(error: Exception) -> None:
    class Greedy(Objective):
        def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
            raise error

    bench = Bench(objective=Greedy())
    state = copy.deepcopy(bench.network.state_dict())
    with pytest.raises(TrainingError, match=r"step\.micro_batches.*step\.recompute.*precision.*batch_size"):
        bench.step()
    for name, tensor in bench.network.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_other_errors_of_the_network_stay_what_they_are() -> None:
    class Broken(Objective):
        def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Bench(objective=Broken()).step()


def test_a_compiler_that_fails_is_named_and_the_step_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    plain, compiled = Bench(), Bench(compile=True)
    assert compiled.step() == plain.step()
    close(compiled.gradients(), plain.gradients(), tolerance=0)
    assert compiled.warnings == ["compile does nothing: RuntimeError: no compiler here"] * 2
    for name, buffer in plain.network.named_buffers():
        assert torch.equal(buffer, compiled.network.get_buffer(name))


@pytest.mark.slow
def test_a_compiled_step_has_the_gradients_of_the_plain_one() -> None:
    plain, compiled = Bench(), Bench(compile=True)
    assert compiled.step() == pytest.approx(plain.step(), rel=1e-9)
    close(compiled.gradients(), plain.gradients())
    assert not compiled.warnings


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "settings"),
    [
        ("fp32", {}),
        ("tf32", {"memory_format": "channels_last", "fold_norms": True}),
        ("fp32", {"attack_precision": "bf16", "recompute": "everywhere"}),
        ("bf16", {"memory_format": "channels_last", "fold_norms": True, "compile": True}),
    ],
    ids=str,
)
def test_on_a_gpu_a_step_has_about_the_loss_of_the_cpu(
    precision: Precision, settings: dict[str, Any]
) -> None:
    """One step of PGD from the image itself: noise differs between devices."""
    objective = Objective.find({"kind": "pgd", "random_start": False})
    exact = Bench(objective=objective, dtype=torch.float32)
    gpu = Bench(objective=objective, dtype=torch.float32, device="cuda", precision=precision, **settings)
    assert gpu.step() == pytest.approx(exact.step(), rel=0.05)
    assert not gpu.warnings
    for _ in range(3):
        gpu.step()
