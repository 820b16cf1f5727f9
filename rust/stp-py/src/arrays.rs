//! Checked views of numpy arrays: exact dtype, C-contiguous, right shape, writable where written, never aliased.

use numpy::{
    Element, PyArray1, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn,
    PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::boundary::raise;
use crate::shared::Shared;

/// Memory that calls are using now, of all threads. numpy's own check compares the arrays that own memory; two arrays
/// over one foreign buffer (`numpy.frombuffer`) have different owners, so addresses are compared here.
static CLAIMS: Shared<Vec<Claim>> = Shared::new(Vec::new());

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    start: usize,
    end: usize,
    written: bool,
    process: u32,
}

/// A range of memory that is in use until this is dropped.
#[derive(Debug)]
struct Claimed(Option<Claim>);

impl Claimed {
    /// Claims the bytes of a contiguous array; `None` where a call that is still running writes them, or reads what
    /// would be written.
    fn new<T>(start: usize, elements: usize, written: bool) -> Option<Self> {
        let end = start + elements * size_of::<T>();
        if start == end {
            return Some(Self(None));
        }
        let claim = Claim { start, end, written, process: std::process::id() };
        // in a child that was forked in the middle of a claim, numpy's own check is what is left
        let Some(mut claims) = CLAIMS.lock() else { return Some(Self(None)) };
        // what another process left in a forked child's memory is claimed by nobody there
        claims.retain(|other| other.process == claim.process);
        let clash = |other: &Claim| start < other.end && other.start < end && (written || other.written);
        if claims.iter().any(clash) {
            return None;
        }
        claims.push(claim);
        Some(Self(Some(claim)))
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let Some(claim) = self.0 else { return };
        let Some(mut claims) = CLAIMS.lock() else { return };
        if let Some(at) = claims.iter().rposition(|other| *other == claim) {
            claims.swap_remove(at);
        }
    }
}

/// A read-only view of an array, and its claim on the memory.
pub(crate) struct Read<'py, T: Element>(
    PyReadonlyArrayDyn<'py, T>,
    #[expect(dead_code, reason = "dropped with the view")] Claimed,
);

/// A writable view of an array, and its claim on the memory.
pub(crate) struct Write<'py, T: Element>(
    PyReadwriteArrayDyn<'py, T>,
    #[expect(dead_code, reason = "dropped with the view")] Claimed,
);

/// A read-only view of `value` with the given shape; -1 in `shape` accepts any length on that axis.
pub(crate) fn read<'py, T: Element>(
    name: &str,
    value: &Bound<'py, PyAny>,
    shape: &[isize],
) -> PyResult<Read<'py, T>> {
    let array = checked::<T>(name, value, shape)?;
    let refuse = || {
        let text =
            format!("{name}: the array's memory is being written by this call or another; pass a copy");
        raise(value.py(), "AliasError", &text)
    };
    let view = array.try_readonly().map_err(|_| refuse())?;
    let claimed = Claimed::new::<T>(array.data() as usize, array.len(), false).ok_or_else(refuse)?;
    Ok(Read(view, claimed))
}

/// A writable view of `value` with the given shape.
pub(crate) fn write<'py, T: Element>(
    name: &str,
    value: &Bound<'py, PyAny>,
    shape: &[isize],
) -> PyResult<Write<'py, T>> {
    let array = checked::<T>(name, value, shape)?;
    let refuse = |why: &str| raise(value.py(), "AliasError", &format!("{name}: {why}"));
    let twice = "the array's memory is used twice in this call, or by another; pass two different arrays";
    let view = array.try_readwrite().map_err(|error| match error {
        numpy::BorrowError::NotWriteable => {
            refuse("the array is read-only; pass one that owns its memory or is writable")
        }
        _ => refuse(twice),
    })?;
    let claimed = Claimed::new::<T>(array.data() as usize, array.len(), true).ok_or_else(|| refuse(twice))?;
    Ok(Write(view, claimed))
}

/// Makes what the first view of an array of each type makes once, while one thread runs: it gives the interpreter up on
/// its way, and a child that another thread forks then waits for ever for what nobody in it will end.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    fn views<T: Element>(py: Python<'_>) -> PyResult<()> {
        let array = PyArray1::<T>::zeros(py, 1, false);
        read::<T>("array", &array, &[1])?;
        write::<T>("array", &array, &[1])?;
        Ok(())
    }
    views::<u8>(py)?;
    views::<i32>(py)?;
    views::<u32>(py)?;
    views::<i64>(py)?;
    views::<u64>(py)?;
    views::<f32>(py)
}

/// Most rows of a batch: more is a mistake, and memory for it would end the process.
const MOST_ROWS: usize = 1 << 24;

/// Refuses more rows than a batch may have: an empty array of any shape costs its caller nothing.
pub(crate) fn bounded(py: Python<'_>, name: &str, rows: usize) -> PyResult<()> {
    if rows <= MOST_ROWS {
        return Ok(());
    }
    Err(raise(py, "InvalidValueError", &format!("{name}: got {rows}, needs at most {MOST_ROWS}")))
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
pub(crate) fn slice<'a, T: Element>(view: &'a Read<'_, T>) -> PyResult<&'a [T]> {
    view.0.as_slice().map_err(Into::into)
}

/// The slice behind a writable view that `write` has checked.
pub(crate) fn slice_mut<'a, T: Element>(view: &'a mut Write<'_, T>) -> PyResult<&'a mut [T]> {
    view.0.as_slice_mut().map_err(Into::into)
}
