"""A member of a family: frozen settings whose methods are its behaviour."""

from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from robustcompress import families
from robustcompress.errors import ConfigError


class Member(BaseModel):
    """Settings of one member; ``kind`` is the name of the file that defines it.

    A family's base class sets ``family`` to its package. In a recipe a member is written as its kind
    (``objective: trades``) or as a mapping (``objective: {kind: trades, beta: 3}``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")
    family: ClassVar[str] = ""

    @property
    def kind(self) -> str:
        """Name of this member within its family."""
        return families.kind_of(type(self).__module__.rsplit(".", 1)[-1])

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"kind": self.kind, **handler(self)}

    @classmethod
    def find(cls, value: object) -> Self:
        """Return the member that ``value`` names: a member, a kind, or a mapping with ``kind``.

        Raises:
            ValueError: If ``value`` names no member or its settings are refused; pydantic turns it into
                an error that carries the field's path.
        """
        if isinstance(value, cls):
            return value
        settings: dict[str, Any]
        if isinstance(value, str):
            kind, settings = value, {}
        elif isinstance(value, dict) and isinstance(value.get("kind"), str):
            settings = {str(key): item for key, item in value.items() if key != "kind"}
            kind = value["kind"]
        else:
            nouns = cls.family.rsplit(".", 1)[-1]
            raise ValueError(
                f"expected one of the {nouns}, by name or as a mapping with 'kind'; got {value!r}"
            )
        try:
            member = member_class(cls, kind.replace("-", "_"))
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return member.model_validate(settings)


M = TypeVar("M", bound=Member)


def member_class(base: type[M], kind: str) -> type[M]:
    """Return the class of member ``kind``: the one subclass of ``base`` that its module defines.

    Raises:
        ConfigError: If the kind is unknown or its module does not define exactly one member.
    """
    module = families.load_module(base.family, kind)
    found = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, base) and item.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{module.__name__} must define exactly one {base.__name__}; it defines {len(found)}."
        )
    return found[0]


def class_attribute(base: type[M], name: str) -> type[M]:
    """Serve a family's module ``__getattr__``: ``objectives.Trades`` loads ``objectives/trades.py``.

    Raises:
        AttributeError: If no member's class has that name.
    """
    for kind in families.kinds(base.family):
        if kind.replace("_", "").lower() == name.lower():
            found = member_class(base, kind)
            if found.__name__ == name:
                return found
    raise AttributeError(f"module {base.family!r} has no member {name!r}")
