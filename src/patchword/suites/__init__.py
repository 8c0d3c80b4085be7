"""Evaluation suites: published benchmarks in their published file layout, with one protocol and defined metrics each.

Each suite is a LightningDataModule for `patchword test`; `--config configs/suites/<name>.yaml` selects one.
"""

from patchword.suites.ade20k import ADE20k
from patchword.suites.aro import VGAttribution, VGRelation
from patchword.suites.base import Suite, SuiteBatch, SuiteData, SuiteEvaluation, SuiteList
from patchword.suites.bivlc import BiVLC
from patchword.suites.classification import Classification
from patchword.suites.coco import CocoRetrieval
from patchword.suites.coco_object import CocoObject
from patchword.suites.coco_stuff import CocoStuff
from patchword.suites.docci import DocciRetrieval
from patchword.suites.faithfulness import CocoFaithfulness
from patchword.suites.flickr30k import Flickr30kRetrieval
from patchword.suites.flickr30k_entities import Flickr30kEntities
from patchword.suites.mmvp import MMVP
from patchword.suites.msrc import MSRCv2
from patchword.suites.order import CocoOrder, Flickr30kOrder
from patchword.suites.pascal import VOC20, VOC21, Context59, Context60
from patchword.suites.refcoco import RefCOCO, RefCOCOg, RefCOCOPlus
from patchword.suites.sugarcrepe import SugarCrepe
from patchword.suites.urban1k import Urban1k
from patchword.suites.winoground import Winoground

__all__ = [
    "MMVP",
    "VOC20",
    "VOC21",
    "ADE20k",
    "BiVLC",
    "Classification",
    "CocoFaithfulness",
    "CocoObject",
    "CocoOrder",
    "CocoRetrieval",
    "CocoStuff",
    "Context59",
    "Context60",
    "DocciRetrieval",
    "Flickr30kEntities",
    "Flickr30kOrder",
    "Flickr30kRetrieval",
    "MSRCv2",
    "RefCOCO",
    "RefCOCOPlus",
    "RefCOCOg",
    "SugarCrepe",
    "Suite",
    "SuiteBatch",
    "SuiteData",
    "SuiteEvaluation",
    "SuiteList",
    "Urban1k",
    "VGAttribution",
    "VGRelation",
    "Winoground",
]
