//! The one place where Python is left and entered: detach, catch panics, map errors.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use stp_core::Error;

/// Runs `work` detached from the interpreter. A panic becomes `InternalError`, a core error its Python class.
pub(crate) fn enter<T: Send>(
    py: Python<'_>,
    work: impl Send + FnOnce() -> stp_core::Result<T>,
) -> PyResult<T> {
    py.detach(|| stp_core::error::catch(work)).map_err(|error| to_python(py, &error))
}

/// The Python exception of a core error.
pub(crate) fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    let class = match error {
        Error::Shape { .. } => "ShapeError",
        Error::Value { .. } => "InvalidValueError",
        Error::PriorConflict { .. } => "PriorConflictError",
        Error::Design { .. } => "DesignError",
        Error::State { .. } => "StateError",
        Error::Panic { .. } => "InternalError",
    };
    raise(py, class, &error.to_string())
}

/// An exception of `stp_rs.errors` by name.
pub(crate) fn raise(py: Python<'_>, class: &str, message: &str) -> PyErr {
    let made = py.import("stp_rs.errors").and_then(|m| m.getattr(class)).and_then(|c| c.call1((message,)));
    match made {
        Ok(instance) => PyErr::from_value(instance),
        Err(_) => PyRuntimeError::new_err(message.to_string()),
    }
}
