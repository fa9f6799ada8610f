"""The study ``lr_transfer``: a line search over η for every scheme, width and horizon."""

from umup.lab.search import LRSweep

DESIGN = LRSweep
