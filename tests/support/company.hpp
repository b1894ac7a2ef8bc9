#pragma once

#include <catch2/catch_test_macros.hpp>

#include "support/call.hpp"
#include "support/thread_executor.hpp"

namespace support {

/// A call of uneven segments in mixed order, of one token and of many in both forms.
inline constexpr seqmix::Index company_rows = 6, company_tokens = 1 + 65 + 7 + 1 + 130;
inline constexpr seqmix::Index row_without_company = 3;  // is in none
inline constexpr seqmix::Segment company[] = {{4, 0, 1, seqmix::Form::recurrent},
                                              {1, 1, 65, seqmix::Form::parallel},
                                              {0, 66, 7, seqmix::Form::recurrent},
                                              {5, 73, 1, seqmix::Form::parallel},
                                              {2, 74, 130, seqmix::Form::parallel}};

/// Checks that segments have the same results together as each alone, with any threads.
/// `run(first, count, result, call)` takes the tokens [first, first + count) through the call;
/// results start as `fresh`. Returns those of all together.
template <class Result>
Result check_company(const Result& fresh, auto&& run, auto&& same,
                     seqmix::Algorithm algorithm = seqmix::Algorithm::automatic,
                     seqmix::Precision precision = seqmix::Precision::fp32) {
  Result alone = fresh, together = fresh;
  seqmix::Context serial = poisoned(algorithm);
  serial.set_precision(precision);
  for (const auto& [row, first, count, form] : company) {
    const seqmix::Segment segments[] = {{row, 0, count, form}};
    run(first, count, alone, seqmix::Call(serial, segments));
  }
  run(seqmix::Index{0}, company_tokens, together, seqmix::Call(serial, company));
  CHECK(same(together, alone));
  for (const seqmix::Index workers : {1, 3}) {
    ThreadExecutor executor(workers);
    seqmix::Context threads(executor);
    threads.set_algorithm(algorithm), threads.set_precision(precision);
    Result result = fresh;
    run(seqmix::Index{0}, company_tokens, result, seqmix::Call(threads, company));
    CHECK(same(result, alone));
  }
  return together;
}

}  // namespace support
