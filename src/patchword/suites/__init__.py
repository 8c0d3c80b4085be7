"""Evaluations as papers report them: data in its published layout, one protocol each, numbers with definitions.

Each is a LightningDataModule for `patchword test`: `--config configs/suites/<name>.yaml` names one.
"""

from patchword.suites.base import Suite, SuiteBatch, SuiteData, SuiteEvaluation, SuiteList

__all__ = ["Suite", "SuiteBatch", "SuiteData", "SuiteEvaluation", "SuiteList"]
