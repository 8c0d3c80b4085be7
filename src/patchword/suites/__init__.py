"""Evaluation suites: published benchmarks in their published file layout, with one protocol and defined metrics each.

Each suite is a LightningDataModule for `patchword test`; `--config configs/suites/<name>.yaml` selects one.
"""

from patchword.suites.ade20k import ADE20k
from patchword.suites.aro import VGAttribution, VGRelation
from patchword.suites.base import Suite, SuiteBatch, SuiteData, SuiteEvaluation, SuiteList
from patchword.suites.bivlc import BiVLC
from patchword.suites.box_classification import CocoBoxClassification
from patchword.suites.cityscapes import Cityscapes
from patchword.suites.classification import Classification
from patchword.suites.clip_benchmark import ClipBenchmark
from patchword.suites.coco import CocoRetrieval
from patchword.suites.coco_detection import CocoDetection
from patchword.suites.coco_object import CocoObject
from patchword.suites.coco_stuff import CocoStuff
from patchword.suites.dci import DCIRetrieval
from patchword.suites.docci import DocciRetrieval
from patchword.suites.faithfulness import CocoFaithfulness
from patchword.suites.fgovd import FGOVD
from patchword.suites.flickr30k import Flickr30kRetrieval
from patchword.suites.flickr30k_entities import Flickr30kEntities
from patchword.suites.iiw import IIWRetrieval
from patchword.suites.mmvp import MMVP
from patchword.suites.msrc import MSRCv2
from patchword.suites.negbench import NegBenchMCQ, NegBenchRetrieval
from patchword.suites.order import CocoOrder, Flickr30kOrder
from patchword.suites.pascal import VOC20, VOC21, Context59, Context60
from patchword.suites.refcoco import RefCOCO, RefCOCOg, RefCOCOPlus
from patchword.suites.sharegpt4v import ShareGPT4VRetrieval
from patchword.suites.sugarcrepe import SugarCrepe
from patchword.suites.sugarcrepe_pp import SugarCrepePP
from patchword.suites.urban1k import Urban1k
from patchword.suites.valse import VALSE
from patchword.suites.voc_detection import VOCDetection
from patchword.suites.winoground import Winoground

__all__ = [
    "FGOVD",
    "MMVP",
    "VALSE",
    "VOC20",
    "VOC21",
    "ADE20k",
    "BiVLC",
    "Cityscapes",
    "Classification",
    "ClipBenchmark",
    "CocoBoxClassification",
    "CocoDetection",
    "CocoFaithfulness",
    "CocoObject",
    "CocoOrder",
    "CocoRetrieval",
    "CocoStuff",
    "Context59",
    "Context60",
    "DCIRetrieval",
    "DocciRetrieval",
    "Flickr30kEntities",
    "Flickr30kOrder",
    "Flickr30kRetrieval",
    "IIWRetrieval",
    "MSRCv2",
    "NegBenchMCQ",
    "NegBenchRetrieval",
    "RefCOCO",
    "RefCOCOPlus",
    "RefCOCOg",
    "ShareGPT4VRetrieval",
    "SugarCrepe",
    "SugarCrepePP",
    "Suite",
    "SuiteBatch",
    "SuiteData",
    "SuiteEvaluation",
    "SuiteList",
    "Urban1k",
    "VGAttribution",
    "VGRelation",
    "VOCDetection",
    "Winoground",
]
