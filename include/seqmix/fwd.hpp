#pragma once

#include "seqmix/core/numeric.hpp"

// How to forward-declare the library's classes: their namespace carries an architecture tag, so
// include this instead of writing declarations by hand.
namespace seqmix {

template <Index Rank>
struct Shape;
template <class T, Index Rank>
class View;

SEQMIX_BEGIN_NAMESPACE

template <class T, Index Rank>
class Tensor;
template <class Scalar, Index Rank>
class Parameter;
class Executor;
class Context;
class AnyState;
template <class Scalar>
class AbstractMixer;
template <class Scalar>
class AnyMixer;
template <class Scalar>
class LanguageModel;
template <class Scalar>
class Registry;
class Safetensors;

SEQMIX_END_NAMESPACE
}  // namespace seqmix
