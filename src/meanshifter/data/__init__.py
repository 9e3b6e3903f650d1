"""Label spaces, readers of images and masks, datasets and augmentation. Importing this package imports no torch."""

from meanshifter.data.catalog import open_dataset
from meanshifter.data.catalog.ade20k import ADE20K
from meanshifter.data.catalog.camvid import CamVid
from meanshifter.data.catalog.cityscapes import Cityscapes
from meanshifter.data.catalog.pascal_voc import PascalVOC
from meanshifter.data.catalog.shapes import Shapes
from meanshifter.data.datasets import Dataset, Folder, Sample
from meanshifter.data.labels import LabelSpace
from meanshifter.data.layout import FolderLayout

__all__ = [
    "ADE20K",
    "CamVid",
    "Cityscapes",
    "Dataset",
    "Folder",
    "FolderLayout",
    "LabelSpace",
    "PascalVOC",
    "Sample",
    "Shapes",
    "open_dataset",
]
