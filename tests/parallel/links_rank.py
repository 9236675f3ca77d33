"""One rank: measures the links of its run and prints what it found as JSON."""

import json
import sys
from dataclasses import asdict

import torch

from sheaf.parallel.links import measure
from sheaf.parallel.ranks import join
from sheaf.parallel.rates import Rates

torch.set_num_threads(1)
with join() as ranks:
    json.dump(asdict(measure(ranks, Rates.alike(1e11))), sys.stdout)
