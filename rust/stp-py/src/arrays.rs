//! Checked views of numpy arrays: exact dtype, C-contiguous, right shape, writable where written, never aliased.

use numpy::{
    Element, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn,
    PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::boundary::raise;

/// A read-only view of `value` with the given shape; -1 in `shape` accepts any length on that axis.
pub(crate) fn read<'py, T: Element>(
    name: &str,
    value: &Bound<'py, PyAny>,
    shape: &[isize],
) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    let array = checked::<T>(name, value, shape)?;
    array.try_readonly().map_err(|_| {
        raise(
            value.py(),
            "AliasError",
            &format!("{name}: the array is being written by the same call; pass a copy"),
        )
    })
}

/// A writable view of `value` with the given shape.
pub(crate) fn write<'py, T: Element>(
    name: &str,
    value: &Bound<'py, PyAny>,
    shape: &[isize],
) -> PyResult<PyReadwriteArrayDyn<'py, T>> {
    let array = checked::<T>(name, value, shape)?;
    array.try_readwrite().map_err(|error| {
        let why = match error {
            numpy::BorrowError::NotWriteable => {
                "the array is read-only; pass one that owns its memory or is writable"
            }
            _ => "the array is used twice in the same call; pass two different arrays",
        };
        raise(value.py(), "AliasError", &format!("{name}: {why}"))
    })
}

/// The length of axis `axis`, after a check of dtype and number of dimensions.
pub(crate) fn dim(name: &str, value: &Bound<'_, PyAny>, axis: usize) -> PyResult<usize> {
    let array = untyped(name, value)?;
    array.shape().get(axis).copied().ok_or_else(|| {
        raise(
            value.py(),
            "ShapeError",
            &format!("{name}: got {} dimensions, needs at least {}", array.ndim(), axis + 1),
        )
    })
}

fn untyped<'a, 'py>(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyUntypedArray>> {
    value.cast::<PyUntypedArray>().map_err(|_| {
        let class = value.get_type().name().map_or_else(|_| "?".to_string(), |n| n.to_string());
        raise(
            value.py(),
            "DtypeError",
            &format!("{name}: got a {class}, needs a numpy array; use numpy.asarray"),
        )
    })
}

fn checked<'a, 'py, T: Element>(
    name: &str,
    value: &'a Bound<'py, PyAny>,
    shape: &[isize],
) -> PyResult<&'a Bound<'py, PyArrayDyn<T>>> {
    let py = value.py();
    let array = untyped(name, value)?;
    let need = T::get_dtype(py);
    if !array.dtype().is_equiv_to(&need) {
        let text =
            format!("{name}: got dtype {}, needs {need}; use {name}.astype(\"{need}\")", array.dtype());
        return Err(raise(py, "DtypeError", &text));
    }
    let fits = array.ndim() == shape.len()
        && array.shape().iter().zip(shape).all(|(&got, &want)| want < 0 || got as isize == want);
    if !fits {
        let want: Vec<String> =
            shape.iter().map(|&d| if d < 0 { "any".into() } else { d.to_string() }).collect();
        let text = format!("{name}: got shape {:?}, needs [{}]", array.shape(), want.join(", "));
        return Err(raise(py, "ShapeError", &text));
    }
    if !array.is_c_contiguous() {
        let text = format!("{name}: the array is not C-contiguous; use numpy.ascontiguousarray");
        return Err(raise(py, "LayoutError", &text));
    }
    value.cast::<PyArrayDyn<T>>().map_err(Into::into)
}

/// The slice behind a read-only view that `read` has checked.
pub(crate) fn slice<'a, T: Element>(view: &'a PyReadonlyArrayDyn<'_, T>) -> PyResult<&'a [T]> {
    view.as_slice().map_err(Into::into)
}

/// The slice behind a writable view that `write` has checked.
pub(crate) fn slice_mut<'a, T: Element>(view: &'a mut PyReadwriteArrayDyn<'_, T>) -> PyResult<&'a mut [T]> {
    view.as_slice_mut().map_err(Into::into)
}
