"""The study ``lr_transfer``: a line search over η for every scheme, width and horizon."""

from umup.lab.lr_sweep import LRSweep

DESIGN = LRSweep
