//! Enums that users spell out in flags and files: one list gives the name, the parser, the error and the serde form.

/// Defines an enum whose variants have names, with `ALL`, `name`, `Display`, `FromStr` and serde by name. The setting
/// named in the head is what parse errors blame.
#[doc(hidden)]
#[macro_export]
macro_rules! __choice {
    ($(#[$meta:meta])* $vis:vis enum $type:ident for $field:literal {
        $($(#[$variant_meta:meta])* $variant:ident = $name:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $type {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $type {
            /// Every choice, in the order it is documented.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// The names of [`Self::ALL`].
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// The name as flags and files spell it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::Error;

            fn from_str(s: &str) -> $crate::Result<Self> {
                match s {
                    $($name => Ok(Self::$variant),)+
                    _ => {
                        let hint = $crate::suggest::hint(s, Self::NAMES.iter().copied());
                        let message = format!("`{}` is not one of {}{hint}", s.escape_debug(), Self::NAMES.join(", "));
                        Err($crate::Error::setting($field, message))
                    }
                }
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let name = <std::borrow::Cow<'_, str> as serde::Deserialize>::deserialize(deserializer)?;
                name.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
#[doc(inline)]
pub use crate::__choice as choice;
