"""The batch contract: which arrays a batch holds, their shapes, and the types that stand for batches and parameters.

``B`` rows, ``S`` tokens in a row, ``E`` examples packed into a row, ``M`` predictions in a row. int32 unless noted.

=====================  =======  ==========================================================================================
name                   shape    meaning
=====================  =======  ==========================================================================================
``input_ids``          B S      token ids
``token_type_ids``     B S      0 up to and including the first [SEP] of an example, then 1
``position_ids``       B S      index into the position table; restarts at 0 with each example of a row
``segment_ids``        B S      1, 2, ... for the examples of a row, 0 for padding: the only attention mask
``word_ids``           B S      index of the word within its example; -1 for special tokens and padding
``example_ids``        B E      id that all randomness of an example is derived from
``cls_positions``      B E      column of each example's [CLS]
``nsp_labels``         B E      1 where the second segment comes from another document
``nsp_weights`` f32    B E      0 where there is no pair
``mlm_positions``      B M      columns of the predicted tokens; added by ``mask_tokens``, as are the following
``mlm_ids``            B M      the original token ids at these columns
``mlm_weights`` f32    B M      1 for a prediction, 0 for an unused slot
``mlm_kinds``          B M      0 replaced by [MASK], 1 replaced by a random token, 2 kept
``mlm_selected``       B        number of selected tokens of a row
``mlm_dropped``        B        predictions that ``max_predictions`` removed from a row
``labels``             ...      a task's labels; the shape depends on the head (``training/losses.py``)
``weights`` f32        ...      0 where a label is unknown
=====================  =======  ==========================================================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array

Params = dict[str, Any]
"""A tree of parameters: nested dictionaries of float32 arrays."""
Batch = dict[str, Array]
"""A batch on the device."""
HostBatch = dict[str, np.ndarray]
"""A batch in the host's memory."""

MASKED, RANDOM, KEPT = range(3)
"""Values of ``mlm_kinds``: replaced by [MASK], replaced by a random token, unchanged."""
