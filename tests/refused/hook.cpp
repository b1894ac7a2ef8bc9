#include "refused/definition.hpp"

struct Misspelt : Whole {
  static constexpr seqmix::Traits traits{.name = "misspelt", .has_position_limit = true};
  seqmix::PositionLimit positions_limit() const { return {}; }
};
void use(seqmix::Mixer<Misspelt>& layer, seqmix::View<float, 2> x, seqmix::NoState& state,
         const seqmix::Call& call) {
  layer.run(x, state, x, call);
}
