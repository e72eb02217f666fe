# Runs in the guest: clones origin.git inside the share, works in the clone and
# pushes. Prints the commit that it made.
set -euo pipefail
export GIT_AUTHOR_NAME=guest GIT_AUTHOR_EMAIL=guest@example.org
export GIT_COMMITTER_NAME=guest GIT_COMMITTER_EMAIL=guest@example.org
git config --global safe.directory '*'
git config --global gc.auto 0

# Over a pipe, because a local clone would only make hard links.
git clone --quiet --no-local origin.git clone
cd clone
git fsck --full --strict --no-dangling
[[ -z $(git status --porcelain) ]]
git rm --quiet file-7
echo changed >file-8
echo new >file-new
git add .
git commit --quiet -m 'from the guest'
git repack --quiet -a -d
git fsck --full --strict --no-dangling
[[ -z $(git status --porcelain) ]]
git push --quiet origin HEAD
git rev-parse HEAD
