# The program runs on each shipped model, scores it as PyTorch does and a text alike in both forms, and
# says what is wrong with a bad command.
set(models "${PROJECT_SOURCE_DIR}/examples/models")
foreach(model llama mamba2 mixtral qwen3_next recurrent_gemma)
  add_test(
    NAME example.generate.${model}
    COMMAND generate "${models}/${model}" --prompt "In the beginning" --tokens 40 --temperature 0
  )
  set_tests_properties(example.generate.${model} PROPERTIES PASS_REGULAR_EXPRESSION "tokens/s")
endforeach()
add_test(NAME example.generate.check COMMAND generate --check "${models}")
add_test(NAME example.generate.score COMMAND generate "${models}/llama" --score
                                             "${PROJECT_SOURCE_DIR}/LICENSE")
set_tests_properties(
  example.generate.score PROPERTIES PASS_REGULAR_EXPRESSION "difference 0\\.00000"
)
add_test(NAME example.generate.no_model COMMAND generate "${models}")
set_tests_properties(
  example.generate.no_model PROPERTIES PASS_REGULAR_EXPRESSION "config.json: no such file"
)

# Where the tests compile every layer, nothing is compiled twice.
if(SEQMIX_BUILD_TESTS)
  target_link_libraries(generate PRIVATE seqmix_layers)
endif()
