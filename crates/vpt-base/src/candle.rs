//! Errors on their way out of code that computes with candle: candle's own type stays inside the crate that computes with it.

use crate::Error;

/// An error of the library, or one of candle's that has become one.
#[derive(Debug)]
pub struct Fault(Error);

impl From<candle_core::Error> for Fault {
    fn from(error: candle_core::Error) -> Self {
        Self(Error::Tensor(Box::new(error)))
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl From<Fault> for Error {
    fn from(Fault(error): Fault) -> Self {
        error
    }
}
