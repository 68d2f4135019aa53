-- Health of a RegistryMirror for Argo CD. Follows kstatus, so it holds for every reason that a condition may have.
local status = obj.status or {}
if status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "waiting for the operator"}
end
local found = {}
for _, condition in ipairs(status.conditions or {}) do
  found[condition.type] = condition
end
if found.Stalled ~= nil and found.Stalled.status == "True" then
  return {status = "Degraded", message = found.Stalled.message}
end
if found.Reconciling ~= nil and found.Reconciling.status == "True" then
  return {status = "Progressing", message = found.Reconciling.message}
end
if found.Ready == nil then
  return {status = "Progressing", message = "waiting for the operator"}
end
if found.Ready.status == "True" then
  return {status = "Healthy", message = found.Ready.message}
end
return {status = "Progressing", message = found.Ready.message}
