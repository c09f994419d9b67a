"""Stands in for the package where one of its programs is run as a file.

`python yt8m_distill/train.py` puts this folder first in sys.path, so that the first
`import yt8m_distill` finds this file; it puts the folder above there instead, and
imports the package.
"""

import importlib
import pathlib
import sys

if __name__ == "yt8m_distill":  # Not where somebody imports every module.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)
    del sys.modules["yt8m_distill"]
    importlib.import_module("yt8m_distill")
