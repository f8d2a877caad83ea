"""Whether the server still takes work."""


class Lifecycle:
    """Shared by whoever shuts the server down and the routes that then refuse.

    While ``leaving``, connections end with their next answer and others are told to go elsewhere.
    While ``draining``, answers under way are finished and no completion is begun.
    """

    def __init__(self) -> None:
        self.leaving = False
        self.draining = False
