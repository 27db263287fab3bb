from moesearch.config.flat import flatten


def test_a_nested_configuration_becomes_dotted_paths() -> None:
    assert flatten({"moe": {"top_k": 2, "noise": True}, "seed": 7}) == {
        "moe.top_k": 2,
        "moe.noise": True,
        "seed": 7,
    }


def test_an_empty_mapping_is_a_value() -> None:
    assert flatten({"search": {}}) == {"search": {}}
