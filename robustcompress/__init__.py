"""Compress adversarially robust networks, export them, and evaluate what was exported under attack.

Everything public is reached from here; nothing is imported before it is asked for, so that
``robustcompress --help`` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustcompress import errors as errors
    from robustcompress import events as events
    from robustcompress.compressor import Compressor as Compressor
    from robustcompress.compressor import Result as Result
    from robustcompress.compressor import load as load
    from robustcompress.data import ImageSet as ImageSet
    from robustcompress.export import formats as formats
    from robustcompress.export.densifying import densify as densify
    from robustcompress.export.network import read_network as read_network
    from robustcompress.export.session import OnnxSession as OnnxSession
    from robustcompress.export.twin import read_twin as read_twin
    from robustcompress.pipeline.certifying import Certification as Certification
    from robustcompress.pipeline.certifying import certify_data_set as certify_data_set
    from robustcompress.pipeline.comparing import compare as compare
    from robustcompress.pipeline.importing import Imported as Imported
    from robustcompress.pipeline.importing import import_checkpoint as import_checkpoint
    from robustcompress.pipeline.judging import evaluate_data_set as evaluate_data_set
    from robustcompress.pipeline.pseudo_labels import PseudoLabels as PseudoLabels
    from robustcompress.pipeline.pseudo_labels import pseudo_label as pseudo_label
    from robustcompress.pipeline.state_dicts import StateDict as StateDict
    from robustcompress.pipeline.state_dicts import write_state_dict as write_state_dict
    from robustcompress.pipeline.verifying import Verification as Verification
    from robustcompress.pipeline.verifying import verify as verify
    from robustcompress.pruning import budgets as budgets
    from robustcompress.pruning import patterns as patterns
    from robustcompress.pruning import scores as scores
    from robustcompress.recipe import Recipe as Recipe
    from robustcompress.report.comparison import Comparison as Comparison
    from robustcompress.report.comparison_table import print_comparison as print_comparison
    from robustcompress.report.judgement import Judgement as Judgement
    from robustcompress.report.judgement import print_judgement as print_judgement
    from robustcompress.report.model import Report as Report
    from robustcompress.report.table import print_report as print_report
    from robustcompress.robustness import attacks as attacks
    from robustcompress.robustness import certifiers as certifiers
    from robustcompress.robustness.alarms.reliability import Reliability as Reliability
    from robustcompress.robustness.alarms.reliability import check_reliability as check_reliability
    from robustcompress.robustness.certification import certified_accuracy as certified_accuracy
    from robustcompress.robustness.certification import certify as certify
    from robustcompress.robustness.evaluation import evaluate as evaluate
    from robustcompress.robustness.target import Target as Target
    from robustcompress.robustness.threat import Threat as Threat
    from robustcompress.sinks.jsonl import JsonlSink as JsonlSink
    from robustcompress.sinks.tensorboard import TensorboardSink as TensorboardSink
    from robustcompress.training import objectives as objectives
    from robustcompress.training.settings import StageSettings as StageSettings
    from robustcompress.zoo import datasets as datasets
    from robustcompress.zoo import networks as networks
    from robustcompress.zoo.normalized import Normalized as Normalized

__version__ = "0.1.0"

# Public name -> where it lives; a module where the part behind the colon is empty.
_PUBLIC = {
    "Certification": "robustcompress.pipeline.certifying:Certification",
    "Comparison": "robustcompress.report.comparison:Comparison",
    "Compressor": "robustcompress.compressor:Compressor",
    "ImageSet": "robustcompress.data:ImageSet",
    "JsonlSink": "robustcompress.sinks.jsonl:JsonlSink",
    "Imported": "robustcompress.pipeline.importing:Imported",
    "Judgement": "robustcompress.report.judgement:Judgement",
    "Normalized": "robustcompress.zoo.normalized:Normalized",
    "OnnxSession": "robustcompress.export.session:OnnxSession",
    "PseudoLabels": "robustcompress.pipeline.pseudo_labels:PseudoLabels",
    "Recipe": "robustcompress.recipe:Recipe",
    "Reliability": "robustcompress.robustness.alarms.reliability:Reliability",
    "Report": "robustcompress.report.model:Report",
    "Result": "robustcompress.compressor:Result",
    "StageSettings": "robustcompress.training.settings:StageSettings",
    "StateDict": "robustcompress.pipeline.state_dicts:StateDict",
    "Target": "robustcompress.robustness.target:Target",
    "TensorboardSink": "robustcompress.sinks.tensorboard:TensorboardSink",
    "Threat": "robustcompress.robustness.threat:Threat",
    "Verification": "robustcompress.pipeline.verifying:Verification",
    "attacks": "robustcompress.robustness.attacks:",
    "budgets": "robustcompress.pruning.budgets:",
    "certified_accuracy": "robustcompress.robustness.certification:certified_accuracy",
    "certifiers": "robustcompress.robustness.certifiers:",
    "certify": "robustcompress.robustness.certification:certify",
    "certify_data_set": "robustcompress.pipeline.certifying:certify_data_set",
    "check_reliability": "robustcompress.robustness.alarms.reliability:check_reliability",
    "compare": "robustcompress.pipeline.comparing:compare",
    "datasets": "robustcompress.zoo.datasets:",
    "densify": "robustcompress.export.densifying:densify",
    "errors": "robustcompress.errors:",
    "evaluate": "robustcompress.robustness.evaluation:evaluate",
    "evaluate_data_set": "robustcompress.pipeline.judging:evaluate_data_set",
    "events": "robustcompress.events:",
    "formats": "robustcompress.export.formats:",
    "import_checkpoint": "robustcompress.pipeline.importing:import_checkpoint",
    "load": "robustcompress.compressor:load",
    "networks": "robustcompress.zoo.networks:",
    "objectives": "robustcompress.training.objectives:",
    "patterns": "robustcompress.pruning.patterns:",
    "print_comparison": "robustcompress.report.comparison_table:print_comparison",
    "print_judgement": "robustcompress.report.judgement:print_judgement",
    "print_report": "robustcompress.report.table:print_report",
    "pseudo_label": "robustcompress.pipeline.pseudo_labels:pseudo_label",
    "read_network": "robustcompress.export.network:read_network",
    "read_twin": "robustcompress.export.twin:read_twin",
    "scores": "robustcompress.pruning.scores:",
    "verify": "robustcompress.pipeline.verifying:verify",
    "write_state_dict": "robustcompress.pipeline.state_dicts:write_state_dict",
}

__all__ = [
    "Certification",
    "Comparison",
    "Compressor",
    "ImageSet",
    "Imported",
    "JsonlSink",
    "Judgement",
    "Normalized",
    "OnnxSession",
    "PseudoLabels",
    "Recipe",
    "Reliability",
    "Report",
    "Result",
    "StageSettings",
    "StateDict",
    "Target",
    "TensorboardSink",
    "Threat",
    "Verification",
    "__version__",
    "attacks",
    "budgets",
    "certified_accuracy",
    "certifiers",
    "certify",
    "certify_data_set",
    "check_reliability",
    "compare",
    "datasets",
    "densify",
    "errors",
    "evaluate",
    "evaluate_data_set",
    "events",
    "formats",
    "import_checkpoint",
    "load",
    "networks",
    "objectives",
    "patterns",
    "print_comparison",
    "print_judgement",
    "print_report",
    "pseudo_label",
    "read_network",
    "read_twin",
    "scores",
    "verify",
    "write_state_dict",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'robustcompress' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = import_module(module)
    return getattr(value, attribute) if attribute else value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
