"""Evaluations as papers report them: data in its published layout, one protocol each, numbers with definitions.

Each is a LightningDataModule for `patchword test`: `--config configs/suites/<name>.yaml` names one.
"""

from patchword.suites.base import Suite, SuiteBatch, SuiteData, SuiteEvaluation, SuiteList
from patchword.suites.classification import Classification
from patchword.suites.coco import CocoRetrieval
from patchword.suites.docci import DocciRetrieval
from patchword.suites.flickr30k import Flickr30kRetrieval
from patchword.suites.urban1k import Urban1k

__all__ = [
    "Classification",
    "CocoRetrieval",
    "DocciRetrieval",
    "Flickr30kRetrieval",
    "Suite",
    "SuiteBatch",
    "SuiteData",
    "SuiteEvaluation",
    "SuiteList",
    "Urban1k",
]
