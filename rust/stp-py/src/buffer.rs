//! Python face of `stp_core::buffer`.

mod columns;

use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping, PyType};
use stp_core::Error;
use stp_core::buffer::Buffer;

use crate::arrays::{dim, read, slice, slice_mut, write};
use crate::boundary::{enter, lock, to_python};
use columns::{Incoming, Outgoing, PUSHED, READ, STORED, known, required};

/// Rollouts kept as a struct of arrays until the optimiser has used them.
#[pyclass(frozen, module = "stp_rs._core")]
struct TrajectoryBuffer {
    completion_length: usize,
    capacity: usize,
    state: Mutex<Buffer>,
}

#[pymethods]
impl TrajectoryBuffer {
    #[new]
    fn new(py: Python<'_>, completion_length: i64, capacity: i64) -> PyResult<Self> {
        let length = count(py, "completion_length", completion_length)?;
        let capacity = count(py, "capacity", capacity)?;
        let buffer = enter(py, || Buffer::new(length, capacity))?;
        Ok(Self { completion_length: length, capacity, state: Mutex::new(buffer) })
    }

    /// Appends rows and returns the index of the first; on an error nothing is written.
    #[pyo3(signature = (**arrays))]
    fn push(&self, py: Python<'_>, arrays: Option<&Bound<'_, PyDict>>) -> PyResult<usize> {
        let arrays = arrays.cloned().unwrap_or_else(|| PyDict::new(py));
        known("push", &arrays, &PUSHED)?;
        let incoming = Incoming::new("push", &arrays, self.completion_length)?;
        let rows = incoming.view()?;
        enter(py, || lock(&self.state).push(&rows))
    }

    /// Sets the rewards of rows.
    fn set_rewards(
        &self,
        py: Python<'_>,
        rows: &Bound<'_, PyAny>,
        reward: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let rows = read::<i32>("rows", rows, &[-1])?;
        let rows = slice(&rows)?;
        let reward = read::<f32>("reward", reward, &[rows.len() as isize])?;
        let reward = slice(&reward)?;
        enter(py, || lock(&self.state).set_rewards(rows, reward))
    }

    /// Sets the advantages of rows.
    fn set_advantages(
        &self,
        py: Python<'_>,
        rows: &Bound<'_, PyAny>,
        advantage: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let rows = read::<i32>("rows", rows, &[-1])?;
        let rows = slice(&rows)?;
        let advantage = read::<f32>("advantage", advantage, &[rows.len() as isize])?;
        let advantage = slice(&advantage)?;
        enter(py, || lock(&self.state).set_advantages(rows, advantage))
    }

    /// Copies rows, in the order given, into caller-owned arrays: any subset of the columns.
    #[pyo3(signature = (rows, *, pad_token_id=0, **out))]
    fn minibatch(
        &self,
        py: Python<'_>,
        rows: &Bound<'_, PyAny>,
        pad_token_id: i64,
        out: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let rows = read::<i32>("rows", rows, &[-1])?;
        let rows = slice(&rows)?;
        let out = out.cloned().unwrap_or_else(|| PyDict::new(py));
        known("minibatch", &out, &READ)?;
        let mut outgoing = Outgoing::new(&out, rows.len(), self.completion_length)?;
        let mut out = outgoing.view()?;
        out.pad_token_id = pad_token_id;
        enter(py, || lock(&self.state).minibatch(rows, &mut out))
    }

    /// The completion of one row before a denoising step, written to `out` `[L]`.
    fn state_at(
        &self,
        py: Python<'_>,
        row: i32,
        step: i32,
        mask_token_id: i64,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let mut out = write::<i64>("out", out, &[self.completion_length as isize])?;
        let out = slice_mut(&mut out)?;
        enter(py, || lock(&self.state).state_at(row, step, mask_token_id, out))
    }

    /// The completions of rows before a denoising step each, written to `out` `[N, L]`.
    fn replay(
        &self,
        py: Python<'_>,
        rows: &Bound<'_, PyAny>,
        step: &Bound<'_, PyAny>,
        mask_token_id: i64,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let rows = read::<i32>("rows", rows, &[-1])?;
        let rows = slice(&rows)?;
        let step = read::<i32>("step", step, &[rows.len() as isize])?;
        let step = slice(&step)?;
        let mut out = write::<i64>("out", out, &[rows.len() as isize, self.completion_length as isize])?;
        let out = slice_mut(&mut out)?;
        enter(py, || lock(&self.state).replay(rows, step, mask_token_id, out))
    }

    /// Drops the rows of policies older than `before_version` and returns their number; the others keep their order.
    fn evict(&self, py: Python<'_>, before_version: i64) -> PyResult<usize> {
        enter(py, || Ok(lock(&self.state).evict(before_version)))
    }

    /// Drops all rows.
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        enter(py, || {
            lock(&self.state).clear();
            Ok(())
        })
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        enter(py, || Ok(lock(&self.state).len()))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let rows = self.__len__(py)?;
        let (length, capacity) = (self.completion_length, self.capacity);
        Ok(format!("TrajectoryBuffer(completion_length={length}, capacity={capacity}) with {rows} rows"))
    }

    /// L, the length of every completion.
    #[getter]
    fn completion_length(&self) -> usize {
        self.completion_length
    }

    /// The largest number of rows.
    #[getter]
    fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that the rows take: 10 L + 41 a row and 4 a prompt token.
    #[getter]
    fn nbytes(&self, py: Python<'_>) -> PyResult<usize> {
        enter(py, || Ok(lock(&self.state).nbytes()))
    }

    /// The longest prompt of the buffer, 0 when it is empty.
    #[getter]
    fn max_prompt_length(&self, py: Python<'_>) -> PyResult<usize> {
        enter(py, || Ok(lock(&self.state).max_prompt_length()))
    }

    /// The whole buffer as plain numpy arrays, for a checkpoint.
    fn to_arrays<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        // a copy, so that no other thread changes the number of rows between the allocation and the reading
        let copy = enter(py, || Ok(lock(&self.state).clone()))?;
        let (rows, width) = (copy.len(), copy.max_prompt_length());
        let arrays = columns::allocate(py, [rows, self.completion_length, width], self.capacity)?;
        let order: Vec<i32> = (0..rows as i32).collect();
        let mut outgoing = Outgoing::new(&arrays, rows, self.completion_length)?;
        let mut out = outgoing.view()?;
        out.unset_as_nan = true;
        enter(py, || copy.minibatch(&order, &mut out))?;
        drop(outgoing);
        Ok(arrays)
    }

    /// A buffer equal to the one whose `to_arrays` is given.
    #[classmethod]
    fn from_arrays(cls: &Bound<'_, PyType>, arrays: &Bound<'_, PyMapping>) -> PyResult<Self> {
        let (py, call) = (cls.py(), "from_arrays");
        let given = PyDict::new(py);
        given.update(arrays)?;
        known(call, &given, &STORED)?;
        let length = dim("token_ids", &required(call, &given, "token_ids")?, 1)?;
        let capacity = read::<i64>("capacity", &required(call, &given, "capacity")?, &[1])?;
        let capacity = count(py, "capacity", slice(&capacity)?[0])?;
        let incoming = Incoming::new(call, &given, length)?;
        let rows = incoming.view()?;
        let shape = [rows.uid.len() as isize];
        let reward = read::<f32>("reward", &required(call, &given, "reward")?, &shape)?;
        let advantage = read::<f32>("advantage", &required(call, &given, "advantage")?, &shape)?;
        let (reward, advantage) = (slice(&reward)?, slice(&advantage)?);
        let buffer = enter(py, || Buffer::new(length, capacity)?.restore(&rows, reward, advantage))?;
        Ok(Self { completion_length: length, capacity, state: Mutex::new(buffer) })
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyDict>,))> {
        let arrays = slf.get().to_arrays(slf.py())?;
        Ok((slf.get_type().getattr("from_arrays")?, (arrays,)))
    }
}

/// A number of things that Python gave.
fn count(py: Python<'_>, name: &'static str, value: i64) -> PyResult<usize> {
    usize::try_from(value).map_err(|_| to_python(py, &Error::value(name, value, "a positive integer")))
}

/// Adds this file's class to the module.
pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<TrajectoryBuffer>()
}
