#pragma once

#include "seqmix/kernels/attention_policies.hpp"
#include "seqmix/kernels/matmul.hpp"
#include "support/scalars.hpp"

// What many layers need of the kernels is compiled once, in matmul.cpp and softmax_attention.cpp.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

#define SEQMIX_MATMUL(word, S)                                                                   \
  word template void matmul<S>(In<S, 3>, const PackedMatrix<S>&, View<S, 3>, Context&, const S*, \
                               bool);                                                            \
  word template void tile_matmul<S>(In<S, 2>, In<S, 2>, View<S, 2>, bool);                       \
  word template class PackedMatrix<S>;

#define SEQMIX_ATTENTION_WITH(word, form, S, Score)                                             \
  word template void attention<form, S, Causal, Score>(In<S, 4>, CacheIn<S, 4>, CacheIn<S, 4>,  \
                                                       In<Index, 1>, Causal, Score, View<S, 4>, \
                                                       Context&, Out<S, 3>);                    \
  word template void ring_attention<form, S, Band, Score>(                                      \
      In<S, 4>, In<S, 4>, In<S, 4>, In<Index, 1>, Band, Score, CacheOut<S, 4>, CacheOut<S, 4>,  \
      View<S, 4>, Context&, Out<S, 3>);                                                         \
  word template void dilated_ring_attention<form, S, Score>(                                    \
      In<S, 4>, In<S, 4>, In<S, 4>, In<Index, 1>, Index, Index, Score, CacheOut<S, 4>,          \
      CacheOut<S, 4>, View<S, 4>, Context&);
#define SEQMIX_ATTENTION(word, S)                             \
  SEQMIX_ATTENTION_WITH(word, Form::parallel, S, PlainScore)  \
  SEQMIX_ATTENTION_WITH(word, Form::parallel, S, SoftCap)     \
  SEQMIX_ATTENTION_WITH(word, Form::parallel, S, Alibi)       \
  SEQMIX_ATTENTION_WITH(word, Form::recurrent, S, PlainScore) \
  SEQMIX_ATTENTION_WITH(word, Form::recurrent, S, SoftCap)    \
  SEQMIX_ATTENTION_WITH(word, Form::recurrent, S, Alibi)

#define SEQMIX_DECLARE(S) SEQMIX_MATMUL(extern, S) SEQMIX_ATTENTION(extern, S)
SEQMIX_FOR_EACH_TEST_SCALAR(SEQMIX_DECLARE)
#undef SEQMIX_DECLARE

SEQMIX_END_NAMESPACE
}  // namespace seqmix
