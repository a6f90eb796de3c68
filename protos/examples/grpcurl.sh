#!/bin/sh
# A reward service from the shell, by grpcurl; it tells its contract by reflection.
#
#   sh grpcurl.sh 127.0.0.1:50053
#
# TRIMTAB_KEY is sent along if it is set, TRIMTAB_MODEL names the model. With TLS leave -plaintext out.
set -eu
target=$1
model=${TRIMTAB_MODEL:-}
call() {
  grpcurl -plaintext -max-time 60 ${TRIMTAB_KEY:+-H "authorization: Bearer $TRIMTAB_KEY"} "$@"
}

call "$target" trimtab.reward.v1.RewardService/ListModels

call -d '{"model": "'"$model"'", "inputs": [
    {"prompt": "How are you?", "completion": "Wonderful, thank you!"},
    {"messages": [{"role": "user", "content": "How are you?"},
                  {"role": "assistant", "content": "Terrible, and that is your fault."}]}
  ]}' "$target" trimtab.reward.v1.RewardService/Score
