//! 3×3 convolutions by cuDNN over channels-last pictures, with what is added to them.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use candle_core::cuda_backend::DeviceId;
use candle_core::{CudaDevice, Result, Tensor};

use super::cudnn::{Handle, Operands, Plan, Problem};
use super::elementwise::{self, Terms};
use super::launch::{Value, address, by_type, int, produce, scratch, slice_address, takes};

/// Plans that a thread keeps; beyond them it begins anew. A model has about forty shapes for each size of a picture and a batch.
const MAX_PLANS: usize = 4096;

/// A thread's handle for a device, and the plans made with it; `None` for what cuDNN refused.
struct Planner {
    handle: Handle,
    plans: HashMap<Problem, Option<Rc<Plan>>>,
}

thread_local! {
    static PLANNERS: RefCell<HashMap<DeviceId, Rc<RefCell<Planner>>>> = RefCell::default();
}

fn planner(device: &CudaDevice) -> Result<Rc<RefCell<Planner>>> {
    PLANNERS.with_borrow_mut(|planners| {
        if let Some(planner) = planners.get(&device.id()) {
            return Ok(planner.clone());
        }
        let planner = Rc::new(RefCell::new(Planner {
            handle: Handle::new(device).map_err(candle_core::Error::wrap)?,
            plans: HashMap::new(),
        }));
        planners.insert(device.id(), planner.clone());
        Ok(planner)
    })
}

impl Planner {
    fn plan(&mut self, problem: Problem) -> Option<Rc<Plan>> {
        if self.plans.len() >= MAX_PLANS {
            self.plans.clear();
        }
        let handle = &self.handle;
        self.plans
            .entry(problem)
            .or_insert_with(|| Plan::new(handle, problem).ok().map(Rc::new))
            .clone()
    }
}

/// Weights of a convolution as cuDNN reads them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights<'a> {
    /// `(output, 3, 3, input)`.
    pub(crate) filter: &'a Tensor,
    /// `(output)`.
    pub(crate) bias: &'a Tensor,
    /// Whether f32 factors may be rounded to TF32.
    pub(crate) tf32: bool,
}

/// `(batch, height, width, input)` to `(batch, height', width', output)`: each pixel doubled first if `up`, a result for every
/// `stride`-th pixel; plus the bias and the two terms.
pub(crate) fn forward(
    x: &Tensor,
    weights: Weights<'_>,
    up: bool,
    stride: usize,
    terms: Terms<'_>,
) -> Result<Option<Tensor>> {
    if !takes(x) || x.dtype() != weights.filter.dtype() || x.elem_count() == 0 {
        return Ok(None);
    }
    let doubled = if up { elementwise::upsample(x)? } else { None };
    let x = doubled.as_ref().unwrap_or(x);
    let (batch, height, width, input) = x.dims4()?;
    let output = weights.filter.dim(0)?;
    let problem = Problem {
        dtype: x.dtype(),
        batch: int(batch)?,
        height: int(height)?,
        width: int(width)?,
        input: int(input)?,
        output: int(output)?,
        stride: int(stride)?,
        tf32: weights.tf32,
    };
    let planner = planner(x.device().as_cuda_device()?)?;
    let Some(plan) = planner.borrow_mut().plan(problem) else {
        return Ok(None);
    };
    let planner = planner.borrow();
    by_type!(x.dtype(), T => run::<T>(x, &planner.handle, &plan, problem, weights, terms)).map(Some)
}

fn run<T: Value>(
    x: &Tensor,
    handle: &Handle,
    plan: &Plan,
    problem: Problem,
    weights: Weights<'_>,
    terms: Terms<'_>,
) -> Result<Tensor> {
    let (rows, columns) = problem.result();
    let shape = [problem.batch, rows, columns, problem.output].map(|side| side as usize);
    let filter = address::<T>(weights.filter)?;
    let bias = address::<T>(weights.bias)?;
    let picture = terms.picture.map(Tensor::contiguous).transpose()?;
    if let Some(picture) = &picture
        && picture.dims() != shape
    {
        candle_core::bail!("{:?} cannot be added to {shape:?}", picture.dims());
    }
    let picture_at = picture.as_ref().map(address::<T>).transpose()?;
    let fused = std::cell::Cell::new(false);
    // SAFETY: cuDNN writes all of y from tensors of the shapes that the plan was made for, which live until the work is launched.
    let y = unsafe {
        produce::<T>(x, &shape, |device, from, to| {
            let mut workspace = scratch::<u8>(device, plan.workspace().max(1))?;
            let operands = Operands {
                x: from,
                filter,
                y: to,
                workspace: slice_address(&mut workspace, &device.cuda_stream()),
            };
            // A bias for each row is nothing that cuDNN fuses.
            if terms.channel.is_none() && plan.run_fused(handle, operands, bias, picture_at) {
                fused.set(true);
                return Ok(());
            }
            plan.run(handle, operands).map_err(candle_core::Error::wrap)
        })?
    };
    if fused.get() {
        return Ok(y);
    }
    let terms = Terms {
        bias: Some(weights.bias),
        ..terms
    };
    let added = elementwise::add(&y, terms)?;
    added.ok_or_else(|| candle_core::Error::Msg("a term is of another type or device".to_owned()))
}
