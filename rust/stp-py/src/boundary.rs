//! The one place where Python is left and entered: detach, catch panics, map errors.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use stp_core::Error;

/// Runs `work` detached from the interpreter. A panic becomes `InternalError`, a core error its Python class.
pub(crate) fn enter<T: Send>(
    py: Python<'_>,
    work: impl Send + FnOnce() -> stp_core::Result<T>,
) -> PyResult<T> {
    match py.detach(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(to_python(py, &error)),
        Err(payload) => {
            let text = payload
                .downcast_ref::<&str>()
                .map(ToString::to_string)
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".to_string());
            Err(raise(py, "InternalError", &format!("the Rust core panicked: {text}; please report this")))
        }
    }
}

/// Panics inside the core: what a caller sees of a defect there. For the tests of this boundary.
#[pyfunction]
pub(crate) fn provoke_panic(py: Python<'_>, message: String) -> PyResult<()> {
    #[expect(clippy::panic, reason = "that is what it is for")]
    enter(py, || panic!("{message}"))
}

/// Locks state shared between Python threads; a state poisoned by an earlier panic is used as it is.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The Python exception of a core error.
pub(crate) fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    let class = match error {
        Error::Shape { .. } => "ShapeError",
        Error::Value { .. } => "InvalidValueError",
        Error::PriorConflict { .. } => "PriorConflictError",
        Error::Design { .. } => "DesignError",
        Error::State { .. } => "StateError",
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
