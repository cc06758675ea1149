//! Layers that never change, as operations of candle that give no gradient to them.
//!
//! Candle's own product gives both factors theirs, and keeps them: of a step of ViT-B/16 with 32 images some three gigabytes that
//! nobody asks for, and half of the work of going back.

use candle_core::backend::BackendStorage;
use candle_core::op::{Add, Mul};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor};

/// `y = x Wᵀ + b` of rows `x` `[m, in]`: products in the format of W, sums in that of `x`.
struct FrozenLinear {
    /// Wᵀ, `[in, out]`.
    weight: Tensor,
    /// `[out]`, in the format of the sums.
    bias: Option<Tensor>,
}

/// `y = x · scale + shift` of rows `[.., D]`.
struct FrozenScale {
    /// `[D]`.
    scale: Tensor,
    /// `[D]`.
    shift: Option<Tensor>,
}

/// A storage of candle that knows its kind among all.
trait StorageKind: BackendStorage {
    /// The storage, if it is of this kind.
    fn of(storage: &Storage) -> Option<&Self>;
}

impl StorageKind for CpuStorage {
    fn of(storage: &Storage) -> Option<&Self> {
        if let Storage::Cpu(storage) = storage { Some(storage) } else { None }
    }
}

#[cfg(feature = "cuda")]
impl StorageKind for candle_core::CudaStorage {
    fn of(storage: &Storage) -> Option<&Self> {
        if let Storage::Cuda(storage) = storage { Some(storage) } else { None }
    }
}

/// `f` of the storage of a frozen tensor, which is on the device of what it meets.
fn with<S: StorageKind, T>(tensor: &Tensor, f: impl FnOnce(&S, &Layout) -> Result<T>) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let storage = S::of(&storage).ok_or_else(|| candle_core::Error::msg("a frozen layer on another device"))?;
    f(storage, layout)
}

/// A layer without learned values.
trait FrozenLayer: Send + Sync {
    const NAME: &'static str;

    /// What it makes of `x`.
    fn forward<S: StorageKind>(&self, x: &S, layout: &Layout) -> Result<(S, Shape)>;

    /// From the gradient of that the one of `x`.
    fn vjp(&self, x: &Tensor, gradient: &Tensor) -> Result<Tensor>;
}

/// A frozen layer as an operation of candle.
struct FrozenOperation<L>(L);

impl<L: FrozenLayer> CustomOp1 for FrozenOperation<L> {
    fn name(&self) -> &'static str {
        L::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.forward(storage, layout)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.0.forward(storage, layout)
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.0.vjp(arg, gradient).map(Some)
    }
}

impl FrozenLayer for FrozenLinear {
    const NAME: &'static str = "frozen-linear";

    fn forward<S: StorageKind>(&self, x: &S, layout: &Layout) -> Result<(S, Shape)> {
        let ((m, k), (_, n), sums) = (layout.shape().dims2()?, self.weight.dims2()?, x.dtype());
        let y = with(&self.weight, |weight: &S, of_weight| {
            if weight.dtype() == sums {
                return x.matmul(weight, (1, m, n, k), layout, of_weight);
            }
            let narrow = x.to_dtype(layout, weight.dtype())?;
            let product = narrow.matmul(weight, (1, m, n, k), &Layout::contiguous((m, k)), of_weight)?;
            product.to_dtype(&Layout::contiguous((m, n)), sums)
        })?;
        let y = match &self.bias {
            None => y,
            Some(bias) => with(bias, |bias: &S, of_bias| {
                y.binary_impl::<Add>(bias, &Layout::contiguous((m, n)), &of_bias.broadcast_as((m, n))?)
            })?,
        };
        Ok((y, (m, n).into()))
    }

    fn vjp(&self, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let gradient = gradient.contiguous()?.to_dtype(self.weight.dtype())?;
        gradient.matmul(&self.weight.t()?)?.to_dtype(x.dtype())
    }
}

impl FrozenLayer for FrozenScale {
    const NAME: &'static str = "frozen-scale";

    fn forward<S: StorageKind>(&self, x: &S, layout: &Layout) -> Result<(S, Shape)> {
        let shape = layout.shape();
        let y = with(&self.scale, |scale: &S, of_scale| {
            x.binary_impl::<Mul>(scale, layout, &of_scale.broadcast_as(shape.clone())?)
        })?;
        let y = match &self.shift {
            None => y,
            Some(shift) => with(shift, |shift: &S, of_shift| {
                let dense = Layout::contiguous(shape.clone());
                y.binary_impl::<Add>(shift, &dense, &of_shift.broadcast_as(shape.clone())?)
            })?,
        };
        Ok((y, shape.clone()))
    }

    fn vjp(&self, _: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        gradient.broadcast_mul(&self.scale)
    }
}

/// `x` `[.., in]` times `weight` `[in, out]` plus `bias` `[out]`: products in the format of `weight`, sums in that of `x`.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let rows = x.contiguous()?.flatten_to(shape.len().saturating_sub(2))?;
    let learns = weight.track_op() || bias.is_some_and(Tensor::track_op);
    let y = if learns {
        let y = multiply(&rows, weight, weight.dtype())?;
        match bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        }
    } else {
        rows.apply_op1(FrozenOperation(FrozenLinear { weight: weight.clone(), bias: bias.cloned() }))?
    };
    if let Some(last) = shape.last_mut() {
        *last = weight.dim(1)?;
    }
    y.reshape(shape)
}

/// `x` `[.., D]` times `scale` `[D]` plus `shift` `[D]`.
pub(super) fn scale(x: &Tensor, scale: &Tensor, shift: Option<&Tensor>) -> Result<Tensor> {
    if !scale.track_op() && !shift.is_some_and(Tensor::track_op) {
        return x.apply_op1(FrozenOperation(FrozenScale { scale: scale.clone(), shift: shift.cloned() }));
    }
    let y = x.broadcast_mul(scale)?;
    match shift {
        Some(shift) => y.broadcast_add(shift),
        None => Ok(y),
    }
}

/// The product of `a` and `b`, computed in the format `products`, in that of `a`.
pub(super) fn multiply(a: &Tensor, b: &Tensor, products: DType) -> Result<Tensor> {
    a.to_dtype(products)?.matmul(&b.to_dtype(products)?)?.to_dtype(a.dtype())
}
