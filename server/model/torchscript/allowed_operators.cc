#include "server/model/torchscript/allowed_operators.h"

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace hookline {
namespace {

// Names lack the underscore at the end that marks the form that writes to its input. The list has those operators of
// LibTorch 1.13 and 2.x that only read and write the tensors they are given and return values. It has none that reaches
// files or other processes, prints, or changes state beyond a call, such as the seed.
constexpr absl::string_view kAten = R"(
Bool Complex ComplexImplicit Delete Float FloatImplicit Int IntImplicit ScalarImplicit Size __and__ __contains__
__derive_index __getitem__ __iand__ __ilshift__ __interpolate __ior__ __irshift__ __is__ __isnot__ __ixor__ __lshift__
__not__ __or__ __range_length __round_to_zero_floordiv __rshift__ __upsample __upsample_bilinear __upsample_nearest
__xor__ _aminmax _assert_async _assert_scalar _batch_norm_impl_index _cast_Byte _cast_Char _cast_Double _cast_Float
_cast_Half _cast_Int _cast_Long _cast_Short _coalesced _conj _convolution _convolution_mode _dim_arange _embedding_bag
_embedding_bag_forward_only _euclidean_dist _fft_c2c _fft_c2r _fft_r2c _fused_rms_norm _fused_sdp_choice
_get_tracing_state _grad_sum_to_size _infer_size _is_zerotensor _linalg_det _linalg_eigh _linalg_slogdet _linalg_svd
_list_to_tensor _local_scalar_dense _log_softmax _masked_softmax _native_batch_norm_legit
_native_batch_norm_legit_no_training _native_multi_head_attention _ncf_unsqueeze _ncf_view _neg_view _nnpack_available
_no_grad_embedding_renorm _no_grad_fill _no_grad_normal _no_grad_uniform _no_grad_zero _pack_padded_sequence
_pad_circular _pad_enum _pad_packed_sequence _prelu_kernel _reshape_from_tensor _safe_softmax
_scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_cudnn_attention
_scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention
_scaled_dot_product_flash_attention_for_cpu _set_item _shape_as_tensor _size_if_not_equal _softmax _stack
_tensor_to_list _to_copy _transformer_encoder_layer_fwd _trilinear _unique _unique2 _unsafe_index _unsafe_index_put
_unsafe_masked_index _unsafe_view _unwrap_optional _version _weight_norm _weight_norm_interface abs absolute acos
acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d add addbmm addcdiv addcmul addmm addmv addr adjoint affine_grid_generator alias all allclose
alpha_dropout amax amin aminmax angle any append arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax
argmin argsort argwhere as_strided as_strided_scatter as_tensor asin asinh atan atan2 atanh atleast_1d atleast_2d
atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm bartlett_window batch_norm batch_norm_elemt batch_norm_stats
batch_norm_update_stats bernoulli bilinear bin binary_cross_entropy binary_cross_entropy_with_logits bincount binomial
bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor blackman_window block_diag bmm
broadcast_tensors broadcast_to bucketize can_cast capitalize cartesian_prod cat cauchy ccol_indices cdist ceil celu
center chain_matmul chalf channel_shuffle cholesky cholesky_inverse cholesky_solve choose_qparams_optimized chr chunk
clamp clamp_max clamp_min clear clip clone coalesce col2im col_indices column_stack combinations complex concat
concatenate conj conj_physical constant_pad_nd contiguous conv1d conv2d conv3d conv_depthwise3d conv_tbc
conv_transpose1d conv_transpose2d conv_transpose3d convolution copy copysign corrcoef cos cosh cosine_embedding_loss
cosine_similarity count count_nonzero cov cpu cross cross_entropy_loss crow_indices ctc_loss cuda cummax cummin
cumprod cumsum cumulative_trapezoid deg2rad degrees dense_dim dequantize det detach device diag diag_embed diagflat
diagonal diagonal_scatter dict diff digamma dim dist div divide divmod dot dropout dsplit dstack einsum element_size
elu embedding embedding_bag empty empty_like empty_quantized empty_strided endswith eq equal erf erfc erfinv exp exp2
expand expand_as expandtabs expm1 exponential extend eye fabs factorial feature_alpha_dropout feature_dropout fft_fft
fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ifftshift
fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn fill
fill_diagonal find fix flatten flip fliplr flipud float_power floor floor_divide floordiv fmax fmin fmod format frac
fractional_max_pool2d fractional_max_pool3d frexp frobenius_norm full full_like gamma gather gcd ge gelu geometric
geqrf ger get get_device glu gradient greater greater_equal grid_sampler grid_sampler_2d grid_sampler_3d group_norm
gru gru_cell gt hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh heaviside hex
hinge_embedding_loss histc histogram histogramdd hsplit hspmm hstack huber_loss hypot i0 igamma igammac im2col imag
index index_add index_fill index_put index_reduce index_select indices inner insert instance_norm int_repr inverse
is_autocast_cpu_enabled is_autocast_enabled is_coalesced is_complex is_conj is_contiguous is_floating_point
is_grad_enabled is_inference is_neg is_non_overlapping_and_dense is_nonzero is_same_size is_scripting is_set_to
is_signed is_strides_like_format isalnum isalpha isclose isdecimal isdigit isfinite isidentifier isin isinf islower
isnan isneginf isnumeric isposinf isprintable isreal isspace istft istitle isupper item items join kaiser_window keys
kl_div kron kthvalue l1_loss layer_norm lcm ldexp le leaky_relu len lerp less less_equal lgamma lift lift_fresh
linalg_cholesky linalg_cholesky_ex linalg_cond linalg_cross linalg_det linalg_diagonal linalg_eig linalg_eigh
linalg_eigvals linalg_eigvalsh linalg_householder_product linalg_inv linalg_inv_ex linalg_lstsq linalg_lu
linalg_lu_factor linalg_lu_factor_ex linalg_lu_solve linalg_matmul linalg_matrix_exp linalg_matrix_norm
linalg_matrix_power linalg_matrix_rank linalg_multi_dot linalg_norm linalg_pinv linalg_qr linalg_slogdet linalg_solve
linalg_solve_ex linalg_solve_triangular linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve linalg_vander
linalg_vecdot linalg_vector_norm linear linspace list ljust log log10 log1p log2 log_normal log_sigmoid
log_sigmoid_forward log_softmax logaddexp logaddexp2 logcumsumexp logdet logical_and logical_not logical_or
logical_xor logit logspace logsumexp lower lstm lstm_cell lstrip lt lu_solve lu_unpack mH mT margin_ranking_loss
masked_fill masked_scatter masked_select mathremainder matmul matrix_H matrix_exp matrix_power max max_pool1d
max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d
max_unpool3d maximum mean median meshgrid min minimum mish mm mode modf moveaxis movedim mse_loss msort mul
multi_margin_loss multilabel_margin_loss multilabel_margin_loss_forward multinomial multiply mv mvlgamma nan_to_num
nanmean nanmedian nanquantile nansum narrow native_batch_norm native_channel_shuffle native_dropout native_group_norm
native_layer_norm native_norm ne neg negative new_empty new_empty_strided new_full new_ones new_zeros nextafter
nll_loss nll_loss2d nll_loss2d_forward nll_loss_forward nll_loss_nd nonzero nonzero_numpy nonzero_static norm
norm_except_dim normal not_equal nuclear_norm numel numpy_T oct one_hot ones ones_like ord orgqr ormqr outer pad
pad_sequence pairwise_distance partition pdist percentFormat permute pinverse pixel_shuffle pixel_unshuffle poisson
poisson_nll_loss polar polygamma pop popitem positive pow prelu prod promote_types put q_per_channel_axis
q_per_channel_scales q_per_channel_zero_points q_scale q_zero_point qr qscheme quantile quantize_per_channel
quantize_per_tensor quantize_per_tensor_dynamic rad2deg radians rand rand_like randint randint_like randn randn_like
random randperm range ravel real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder
remove renorm repeat repeat_interleave replace replication_pad1d replication_pad2d replication_pad3d requires_grad
reshape reshape_as resize resize_as resolve_conj resolve_neg result_type reverse rfind rindex rjust rms_norm rnn_relu
rnn_relu_cell rnn_tanh rnn_tanh_cell roll rot90 round row_indices row_stack rpartition rrelu rrelu_with_noise rsplit
rsqrt rstrip rsub scalar_tensor scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted
segment_reduce select select_scatter selu set_grad_enabled setdefault sgn sigmoid sign signbit silu sin sinc sinh size
slice slice_scatter slogdet smm smooth_l1_loss soft_margin_loss softmax softplus softshrink sort sorted
special_digamma special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit
special_expm1 special_gammainc special_gammaincc special_gammaln special_i0 special_i0e special_i1 special_i1e
special_log1p special_log_ndtr special_log_softmax special_logit special_logsumexp special_multigammaln special_ndtr
special_ndtri special_polygamma special_psi special_round special_sinc special_softmax special_xlog1py special_xlogy
special_zeta split split_with_sizes splitlines sqrt square squeeze sspaddmm stack startswith std std_mean stft
storage_offset str stride strip sub subtract sum sum_to_size svd swapaxes swapcase swapdims sym_constrain_range
sym_constrain_range_for_size symeig t take take_along_dim tan tanh tensor tensor_split tensordot threshold tile title
to to_dense to_padded_tensor topk trace transpose trapezoid trapz triangular_solve tril tril_indices
triplet_margin_loss triu triu_indices true_divide trunc type_as unbind unflatten unfold uniform unique_consecutive
unique_dim unique_dim_consecutive unsafe_chunk unsafe_masked_index unsafe_split unsafe_split_with_sizes unsqueeze
update upper upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_trilinear3d values vander var var_mean vdot view view_as view_as_complex view_as_real
vsplit vstack where xlogy zero zeros zeros_like zfill
)";

// Control flow, attributes, calls and values. None of these forks, prints or calls Python.
constexpr absl::string_view kPrim = R"(
CallFunction CallMethod ComprehensionScope Constant ConstantChunk CreateObject DictConstruct Enter EnumName EnumValue
Exit GetAttr HasAttr If IfThenElse ListConstruct ListUnpack Loop ModuleContainerIndex NumToTensor RaiseException
SetAttr StringIndex TupleConstruct TupleIndex TupleSlice TupleUnpack Uninitialized abs annotate data device dict dtype
enumerate id index is_cpu is_cuda is_ipu is_meta is_mkldnn is_mps is_nested is_quantized is_sparse is_sparse_csr
is_vulkan is_xpu isinstance itemsize layout list max min name range rangelist requires_grad tolist type unchecked_cast
unchecked_unwrap_optional zip
)";

using Names = absl::flat_hash_set<absl::string_view>;

Names* Split(absl::string_view names) {
  return new Names(absl::StrSplit(names, absl::ByAnyChar(" \n"), absl::SkipEmpty()));
}

}  // namespace

bool OnlyComputes(absl::string_view name) {
  static const Names* const aten = Split(kAten);
  static const Names* const prim = Split(kPrim);
  // All of these compute with quantised tensors and their packed weights.
  if (absl::StartsWith(name, "quantized::")) return true;
  if (absl::ConsumePrefix(&name, "prim::")) return prim->contains(name);
  if (!absl::ConsumePrefix(&name, "aten::")) return false;
  return aten->contains(name) || (absl::ConsumeSuffix(&name, "_") && aten->contains(name));
}

}  // namespace hookline
