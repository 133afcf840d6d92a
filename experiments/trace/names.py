"""Names of kernels."""


def short_name(signature: str) -> str:
    """A kernel's name without return type, namespaces, template and arguments, as nsys has it."""
    depth, plain = 0, []
    for letter in signature.replace("(anonymous namespace)", "unnamed"):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            break
        if depth == 0 and letter != ">":
            plain.append(letter)
    words = "".join(plain).split()
    return words[-1].rsplit("::", 1)[-1] if words else signature
