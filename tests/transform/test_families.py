"""Every family of the table is one that transformers has."""

import transformers

from aibit_format.transform.families import FAMILIES, GATED, MLP_READS, MLP_WRITES


def test_model_types_are_those_of_causal_models():
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert set(FAMILIES) <= set(known)


def test_what_a_gate_multiplies_is_read_through_a_norm_and_written():
    assert {up for up, _, _ in GATED} <= set(MLP_READS) and {down for _, _, down in GATED} == set(MLP_WRITES)
