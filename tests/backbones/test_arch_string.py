from cnsn_cli.backbones import arch_string


def test_a_name_with_options():
    assert arch_string.parse("vgg16:width=0.5") == ("vgg16", None, {"width": 0.5})
    assert arch_string.parse("mine:depth=3,kind=big") == ("mine", None, {"depth": 3, "kind": "big"})
    assert arch_string.parse("vgg16") == ("vgg16", None, {})


def test_a_name_with_a_variant_and_options_in_brackets():
    assert arch_string.parse("timm:resnet18") == ("timm", "resnet18", {})
    spec = arch_string.parse("timm:convnext_tiny:dims=(1,(2,3)),act='relu',n=[4,5]")
    assert spec == ("timm", "convnext_tiny", {"dims": (1, (2, 3)), "act": "relu", "n": [4, 5]})


def test_options_are_literals_never_code():
    _, _, options = arch_string.parse("vgg16:width=__import__('os').getpid()")
    assert options == {"width": "__import__('os').getpid()"}
    assert arch_string.parse("vgg16:width={[1]:2}").options == {"width": "{[1]:2}"}  # a list is no key
