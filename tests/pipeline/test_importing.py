from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustcompress import (
    Compressor,
    Normalized,
    Recipe,
    Result,
    import_checkpoint,
    load,
    verify,
    write_state_dict,
)
from robustcompress.errors import ConfigError, StorageError
from robustcompress.storage.artifact import load_artifact
from robustcompress.zoo.networks import Network
from tests.pipeline.conftest import Residual, bars, recipe
from tests.pipeline.foreign_networks import Resnet18, ScoredConv, ScoredLinear, WideResnet284, lived_in

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def resnet(
    *, scored: bool = True, shortcut: str = "shortcut", top: str = "linear", k: float = 1.0
) -> nn.Module:
    torch.manual_seed(0)
    conv, linear = (ScoredConv, ScoredLinear) if scored else (nn.Conv2d, nn.Linear)
    return lived_in(Resnet18(4, conv, linear, shortcut, top), k)


def hydra_file(path: Path, network: nn.Module) -> Path:
    """Save as HYDRA's code does: under DataParallel, with a NumPy number in the optimizer."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    optimizer.param_groups[0]["lr"] = np.float64(0.05)
    content = {
        "epoch": 3,
        "arch": "net",
        "state_dict": nn.DataParallel(network).state_dict(),
        "best_prec1": np.float64(81.5),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, path)
    return path


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(IMAGES)
    return found


@pytest.mark.parametrize("k", [0.01, 0.9, 1.0])
def test_a_checkpoint_of_hydra_computes_what_it_did_there(tmp_path: Path, k: float) -> None:
    theirs = resnet(k=k)
    file = hydra_file(tmp_path / "c.pth.tar", theirs)
    found = import_checkpoint(file, tmp_path / "in", network={"kind": "resnet18", "width": 4}, k=k)
    assert torch.allclose(logits(load(tmp_path / "in")), logits(theirs), atol=1e-5)
    assert (found.naming, found.key, found.without_scores) == ("hydra", "state_dict", ())
    artifact = load_artifact(tmp_path / "in")
    if k == 1:
        assert (artifact.stage, found.masked, dict(artifact.extra_tensors)) == ("pretrain", {}, {})
        return
    assert artifact.stage == "finetune"
    for name, layer in (
        ("conv1", "conv1"),
        ("blocks.2.shortcut.0", "layer2.0.shortcut.0"),
        ("classifier", "linear"),
    ):
        module = theirs.get_submodule(layer)
        assert isinstance(module, ScoredConv | ScoredLinear)
        assert torch.equal(artifact.extra_tensors[f"scores.{name}"], module.popup_scores)
        kept = artifact.extra_tensors[f"mask.{name}"]
        assert torch.equal(artifact.tensors[f"{name}.weight"], module.weight * kept)
        size = module.weight.numel()
        assert found.masked[name] == {"size": size, "kept": size - int((1 - k) * size)}


def test_the_dead_keys_of_a_wide_network_are_left_out_and_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = lived_in(WideResnet284(2), 0.1)
    file = hydra_file(tmp_path / "c.pth.tar", theirs)
    found = import_checkpoint(file, tmp_path / "in", network={"kind": "wide_resnet_28_4", "width": 2}, k=0.1)
    assert torch.allclose(logits(load(tmp_path / "in")), logits(theirs), atol=1e-5)
    assert found.dropped
    assert all(name.startswith("sub_block1.") for name in found.dropped)
    assert found.as_dict()["sparsity"] == found.sparsity == pytest.approx(0.9, abs=0.01)


def test_removed_weights_keep_their_values_where_asked(tmp_path: Path) -> None:
    theirs = resnet(k=0.1)
    file = hydra_file(tmp_path / "c.pth.tar", theirs)
    settings = {"kind": "resnet18", "width": 4}
    import_checkpoint(file, tmp_path / "in", network=settings, k=0.1, keep_removed=True)
    artifact = load_artifact(tmp_path / "in")
    assert artifact.stage == "prune"
    weight = theirs.get_submodule("conv1").get_parameter("weight")
    assert torch.equal(artifact.tensors["conv1.weight"], weight)
    assert int(artifact.extra_tensors["mask.conv1"].sum()) == 108 - int(0.9 * 108)


@pytest.mark.parametrize(
    ("shortcut", "top", "naming"), [("downsample", "fc", "torchvision"), ("shortcut", "linear", "hydra")]
)
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "backbone."])
def test_a_dense_checkpoint_under_others_names_and_prefixes(
    tmp_path: Path, shortcut: str, top: str, naming: str, prefix: str
) -> None:
    theirs = resnet(scored=False, shortcut=shortcut, top=top)
    save_file(
        {prefix + name: tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "c.safetensors"
    )
    settings = {"kind": "resnet18", "width": 4}
    found = import_checkpoint(tmp_path / "c.safetensors", tmp_path / "in", network=settings)
    assert found.naming == naming
    assert torch.allclose(logits(load(tmp_path / "in")), logits(theirs), atol=1e-5)


def test_a_users_own_network_takes_its_own_names_also_behind_its_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = Residual().half()
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "c.pt")
    ours = Normalized(Residual(), [0.5], [0.25])
    found = import_checkpoint(tmp_path / "c.pt", tmp_path / "in", network=ours)
    assert {"mean", "std", "model.norm.num_batches_tracked"} <= set(found.kept_as_built)
    again = load(tmp_path / "in", model=Normalized(Residual(), [0.0], [1.0]))
    images = torch.rand(2, 1, 9, 9)
    with torch.no_grad():
        expected = theirs.float().eval()((images - 0.5) / 0.25)
        assert torch.allclose(again(images), expected, atol=1e-5)


def test_a_factory_is_imported_only_where_that_is_allowed(tmp_path: Path) -> None:
    torch.save(Residual().state_dict(), tmp_path / "c.pt")
    name = "tests.pipeline.conftest:Residual"
    with pytest.raises(ConfigError, match="--allow-import"):
        import_checkpoint(tmp_path / "c.pt", tmp_path / "in", network=name)
    import_checkpoint(tmp_path / "c.pt", tmp_path / "in", network=name, allow_import=True)
    assert load(tmp_path / "in", allow_import=True)(torch.rand(1, 1, 9, 9)).shape == (1, 3)


def scored_bars(path: Path) -> dict[str, Any]:
    """Write a checkpoint with scores of a small network of the zoo; return the network's settings."""
    settings = {"kind": "small_cnn", "image_size": 9, "num_classes": 3, "widths": [4, 4], "hidden": 8}
    torch.manual_seed(0)
    state = Network.find(settings).build().state_dict()
    weights = {name: tensor for name, tensor in state.items() if tensor.ndim > 1}
    scores = {name.replace("weight", "popup_scores"): torch.randn_like(w) for name, w in weights.items()}
    torch.save({"state_dict": {**state, **scores}}, path)
    return settings


def gone_on(tmp_path: Path, settings: dict[str, Any], stages: list[str]) -> Result:
    """Run ``stages`` with the artifact ``in`` and its network."""
    values = recipe(model=settings, weights=str(tmp_path / "in"), stages=stages).model_dump(mode="json")
    values["evaluation"] |= {"alarms": False, "curve": [], "attacks": ["fgsm"]}
    values["finetune"] |= {"epochs": 1}
    return Compressor(
        recipe=Recipe.from_values(values),
        train=bars(30, 0),
        test=bars(30, 1),
        run_dir=tmp_path / "run",
        progress=False,
    ).compress()


def test_a_recipe_finetunes_what_the_imported_masks_kept(tmp_path: Path) -> None:
    settings = scored_bars(tmp_path / "c.pt")
    found = import_checkpoint(tmp_path / "c.pt", tmp_path / "in", network=settings, k=0.3)
    made = gone_on(tmp_path, settings, ["finetune"])
    finetuned, imported = load_artifact(made.artifact), load_artifact(tmp_path / "in")
    for name in found.masked:
        mask = imported.extra_tensors[f"mask.{name}"]
        assert torch.equal(finetuned.extra_tensors[f"mask.{name}"], mask)
        assert not finetuned.tensors[f"{name}.weight"][~mask].any()
    assert not torch.equal(finetuned.tensors["classifier.weight"], imported.tensors["classifier.weight"])


@pytest.mark.slow
def test_an_imported_network_is_compacted_exported_evaluated_and_verified(tmp_path: Path) -> None:  # 7 s
    settings = scored_bars(tmp_path / "c.pt")
    import_checkpoint(tmp_path / "c.pt", tmp_path / "in", network=settings, k=0.3)
    made = gone_on(tmp_path, settings, ["compact", "export", "evaluate"])
    images = torch.rand(4, 1, 9, 9)
    assert torch.allclose(made.network(images), load(tmp_path / "in")(images), atol=1e-5)
    checked = verify(made.files[0].path, bars(30, 1), device="cpu")
    verdicts = {item.claim.access: item.verdict for item in checked.checked}
    assert verdicts.pop("transfer", "not re-run") == "not re-run"
    assert set(verdicts.values()) == {"confirmed"}


def test_layers_without_scores_are_named(tmp_path: Path) -> None:
    settings = scored_bars(tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt", weights_only=True)["state_dict"]
    del state["classifier.popup_scores"]
    torch.save(state, tmp_path / "d.pt")
    found = import_checkpoint(tmp_path / "d.pt", tmp_path / "in", network=settings, k=0.5)
    assert found.without_scores == ("classifier",)
    assert "mask.classifier" not in load_artifact(tmp_path / "in").extra_tensors


def test_k_is_needed_with_scores_and_refused_without(tmp_path: Path) -> None:
    settings = scored_bars(tmp_path / "c.pt")
    with pytest.raises(ConfigError, match="does not say which fraction"):
        import_checkpoint(tmp_path / "c.pt", tmp_path / "in", network=settings)
    with pytest.raises(ConfigError, match="at most 1; got 2"):
        import_checkpoint(tmp_path / "c.pt", tmp_path / "in", network=settings, k=2)
    torch.save(Network.find(settings).build().state_dict(), tmp_path / "dense.pt")
    with pytest.raises(ConfigError, match="k means nothing"):
        import_checkpoint(tmp_path / "dense.pt", tmp_path / "in", network=settings, k=0.5)
    assert not (tmp_path / "in").exists()


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refused(state: dict[str, Tensor], message: str, **options: Any) -> None:
        torch.save(state, tmp_path / "c.pt")
        with pytest.raises(StorageError, match=message):
            import_checkpoint(tmp_path / "c.pt", tmp_path / "in", network=Residual(), **options)

    state = Residual().state_dict()
    lacking = {name: tensor for name, tensor in state.items() if name != "stem.weight"}
    refused(lacking, r"missing \['stem.weight'\] \(1 in all\).*another network")
    refused({**state, "normalize.mean": torch.zeros(3)}, r"unexpected \['normalize.mean'\].*--drop GLOB")
    refused(
        {**state, "classifier.weight": torch.zeros(5, 8)}, r"is \[5, 8\] there and \[3, 8\] in the network"
    )
    inexact = {**state, "classifier.bias": torch.full((3,), 0.1, dtype=torch.float64)}
    refused(inexact, "float64 there and would be rounded to torch.float32")
    scores = {"classifier.popup_scores": torch.ones(3, 7)}
    refused({**state, **scores}, r"scores of classifier.weight: expected \[3, 8\]", k=0.5)
    torch.save({**state, "normalize.mean": torch.zeros(3)}, tmp_path / "c.pt")
    found = import_checkpoint(tmp_path / "c.pt", tmp_path / "in", network=Residual(), drop=["normalize.*"])
    assert found.dropped == ("normalize.mean",)
    with pytest.raises(ConfigError, match="holds an artifact already"):
        import_checkpoint(tmp_path / "c.pt", tmp_path / "in", network=Residual())
    with pytest.raises(ConfigError, match=r"network: .*Did you mean 'resnet18'"):
        import_checkpoint(tmp_path / "c.pt", tmp_path / "out", network="resnet19")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_goes_out_as_it_came_in(tmp_path: Path, suffix: str) -> None:
    theirs = resnet(scored=False, shortcut="downsample", top="fc")
    torch.save(theirs.state_dict(), tmp_path / "c.pt")
    settings = {"kind": "resnet18", "width": 4}
    import_checkpoint(tmp_path / "c.pt", tmp_path / "in", network=settings)
    out = tmp_path / f"out{suffix}"
    found = write_state_dict(tmp_path / "in", out, names="torchvision")
    assert found.as_dict() == {
        "path": str(out),
        "naming": "torchvision",
        "tensors": len(theirs.state_dict()),
        "size_bytes": out.stat().st_size,
    }
    again = import_checkpoint(out, tmp_path / "again", network=settings)
    assert again.naming == "torchvision"
    if suffix == ".pt":
        written = torch.load(out, weights_only=True)
        assert written.keys() == theirs.state_dict().keys()
        assert all(torch.equal(written[name], tensor) for name, tensor in theirs.state_dict().items())
    for one, other in zip(
        load(tmp_path / "in").parameters(), load(tmp_path / "again").parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_state_dict_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    torch.save(Residual().state_dict(), tmp_path / "c.pt")
    import_checkpoint(tmp_path / "c.pt", tmp_path / "in", network=Residual())
    with pytest.raises(ConfigError, match=r"expected a file .pt, .pth, .safetensors; got"):
        write_state_dict(tmp_path / "in", tmp_path / "out.bin")
    with pytest.raises(ConfigError, match="never overwritten"):
        write_state_dict(tmp_path / "in", tmp_path / "c.pt")
    with pytest.raises(ConfigError, match="no names 'hydra'"):
        write_state_dict(tmp_path / "in", tmp_path / "out.pt", names="hydra", model=Residual())
